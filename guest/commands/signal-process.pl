# Sends a signal to every process of a unit but the one that will record its end. Exit code 9: it has none any more.
# It is sent between single quotes, and has none.
use strict;
my ($cgroup, $signal) = @ARGV;

sub content { my ($path) = @_; open my $file, "<", $path or return ""; local $/; return <$file> // "" }

sub put { my ($path, $text) = @_; open my $file, ">", $path or return; syswrite $file, $text }

# How many there were.
sub signal_group {
    my ($group) = @_;
    my @members = split " ", content("$group/cgroup.procs");
    my $count = kill $signal, grep { content("/proc/$_/cmdline") !~ m{/run-process\0} } @members;
    opendir my $inner, $group or return $count;
    $count += signal_group("$group/$_") for grep { !/^\./ && -d "$group/$_" } readdir $inner;
    return $count;
}

exit 9 if !-d $cgroup;
# A group that is frozen takes no other signal, and one that grows cannot be counted: the kernel ends it as a whole.
# What records its end comes into the same group.
if ($signal == 9 && put("$cgroup/cgroup.kill", "1")) { put("$cgroup/cgroup.freeze", "0"); exit 0 }
# Where nobody is yet, the process is about to begin.
for (1 .. 50) {
    exit 0 if signal_group($cgroup) || !-d $cgroup;
    select undef, undef, undef, 0.1;
}
