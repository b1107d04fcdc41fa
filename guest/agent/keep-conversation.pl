# Becomes the agent, whose conversations are kept where the first argument says if that is there: Claude Code's own
# directory of them becomes a link to it. One process, as a process costs an emulated machine a tenth of a second.
use strict;
my ($kept, @agent) = @ARGV;
if (-d $kept) {
    mkdir "$ENV{HOME}/.claude";
    symlink $kept, "$ENV{HOME}/.claude/projects";
}
exec { $agent[0] } @agent;
print STDERR "taskyard: $agent[0]: $!\n";
exit($! == 2 ? 127 : 126);
