# Sends a signal to every process of a unit but the one that will record its end. Exit code 9: it has none any more.
# It is sent between single quotes, and has none.
use strict;
my ($cgroup, $signal) = @ARGV;

sub content { my ($path) = @_; open my $file, "<", $path or return ""; local $/; return <$file> // "" }

sub signal_group {
    my ($group) = @_;
    kill $signal, grep { content("/proc/$_/cmdline") !~ m{/run-process\0} } split " ", content("$group/cgroup.procs");
    opendir my $inner, $group or return;
    signal_group("$group/$_") for grep { !/^\./ && -d "$group/$_" } readdir $inner;
}

exit 9 if !-d $cgroup;
# A group that is frozen takes no other signal, and one that grows cannot be counted: the kernel ends it as a whole.
if ($signal == 9 && open my $file, ">", "$cgroup/cgroup.kill") { print $file 1; exit 0 }
signal_group($cgroup);
