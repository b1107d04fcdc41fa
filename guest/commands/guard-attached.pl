# Ends attached processes, each of which is in a group of its own below the one that is named as the argument.
# Standard input has lines: "end GROUP", and "signal GROUP ID NAME" for the processes of the group whose process group has
# that id. At its end, which comes with that of the connection to the host, all of them are killed.
# The kernel kills a group whole, also what has left its session or ignores signals. It is sent between single quotes,
# and has none.
use strict;
my $GROUPS = "/sys/fs/cgroup/taskyard";
my ($own) = @ARGV;
my ($PAUSE, $TRIES) = (0.05, 200);

sub put { my ($path, $text) = @_; open my $file, ">", $path or return; syswrite $file, $text }
sub members { my ($path) = @_; open my $file, "<", $path or return; my @all = <$file>; chomp @all; return @all }

sub deliver {
    my ($group, $id, $name) = @_;
    return put("$GROUPS/$own/$group/cgroup.kill", "1") if $name eq "KILL";
    kill $name, -$id if grep { getpgrp($_) == $id } members("$GROUPS/$own/$group/cgroup.procs");
}

# A group can be removed when its last process is gone. What a root of the machine has put below it is not looked for.
my %ending;
sub remove {
    for my $path (keys %ending) {
        delete $ending{$path} if rmdir $path or !-d $path or !$ending{$path}--;
    }
}

sub end {
    my ($path) = @_;
    put("$path/cgroup.kill", "1");
    $ending{$path} = $TRIES;
    remove();
}

mkdir $GROUPS;
mkdir "$GROUPS/$own" or die "$GROUPS/$own: $!\n";
# Whoever moves a process into a group waits for all processors, unless the kernel is told to have that done beforehand.
my ($SYS_MOUNT, $MS_REMOUNT, $GROUPS_ROOT, $TYPE) = (165, 32, "/sys/fs/cgroup", "cgroup2");
my $OPTIONS = "nsdelegate,memory_recursiveprot,favordynmods";
syscall $SYS_MOUNT, $TYPE, $GROUPS_ROOT, $TYPE, $MS_REMOUNT | 2 | 4 | 8, $OPTIONS;
$SIG{PIPE} = "IGNORE";
syswrite STDOUT, "ready\n";

my $buffer = "";
while (1) {
    vec(my $readable = "", 0, 1) = 1;
    if (!select $readable, undef, undef, %ending ? $PAUSE : undef) { remove(); next }
    last if !sysread STDIN, $buffer, 65536, length $buffer;
    while ((my $length = index $buffer, "\n") >= 0) {
        my ($verb, @words) = split / /, substr $buffer, 0, $length;
        substr $buffer, 0, $length + 1, "";
        end("$GROUPS/$own/$words[0]") if $verb eq "end";
        deliver(@words) if $verb eq "signal";
    }
}
put("$GROUPS/$own/cgroup.kill", "1");
for (1 .. $TRIES) {
    rmdir for glob "$GROUPS/$own/*/";
    last if rmdir "$GROUPS/$own";
    select undef, undef, undef, $PAUSE;
}
