# Sends what a process writes, and how it ends, as it comes: frames of a line with a name and a size, and as many bytes.
# "stdout" and "stderr" have the bytes of those files from the offsets given as arguments on; "exit" has those of the
# exit record; "gone" says that the unit has no process any more. Unless it is to follow, "end" comes after what there
# is. Ends with its reader, whose going away ends its standard input.
# One process and one channel, of which a machine has few. It is sent between single quotes, and has none.
use strict;
my ($dir, $volatile, $cgroup, $follow, %at) = @ARGV;
# Of Linux on x86-64.
my ($INOTIFY_ADD, $INOTIFY_INIT, $IN_MODIFY, $NONBLOCK) = (254, 294, 2, 2048);
# Events tell of most of what comes; a file that was put in the place of another is looked at this often.
my ($LOOK_SECONDS, $RECORD_BYTES_MOST) = (2, 65536);
my (%file, %place);
$place{$_} = "$dir/$_" for keys %at;
$at{exit} = 0;
# Machines of earlier versions have it on the disk.
$place{exit} = -e "$volatile/exit" || !-e "$dir/exit" ? "$volatile/exit" : "$dir/exit";

my $watch = syscall $INOTIFY_INIT, $NONBLOCK;
open my $news, "<&=", $watch;
my $watched = "";
vec($watched, $_, 1) = 1 for $watch, fileno STDIN;
$SIG{PIPE} = "DEFAULT";

sub put {
    my ($frame) = @_;
    for (my $at = 0; $at < length $frame;) { $at += syswrite(STDOUT, $frame, 65536, $at) || exit 1 }
}

# What of it has come; nothing of what is no file.
sub news_of {
    my ($name) = @_;
    if (!$file{$name}) {
        # Nothing that is put in its place may hold this up.
        sysopen $file{$name}, $place{$name}, $NONBLOCK or do { undef $file{$name}; return };
        sysseek $file{$name}, $at{$name}, 0;
        my $path = $place{$name};
        syscall $INOTIFY_ADD, $watch, $path, $IN_MODIFY;
    }
    return if $name eq "exit" && $at{exit} >= $RECORD_BYTES_MOST;
    my $got = sysread $file{$name}, my $data, 32768;
    return if !$got;
    $at{$name} += $got;
    put("$name $got\n$data");
    return 1;
}

syscall $INOTIFY_ADD, $watch, my $events = "$cgroup/cgroup.events", $IN_MODIFY;
my $slice = $cgroup =~ s{/[^/]*$}{}r;
my $gone;
while (1) {
    # Asked first: a unit that is gone has written all before.
    my $over = !-d $cgroup && -d $slice;
    my $busy;
    for my $name (sort keys %at) { $busy = 1 if news_of($name) }
    next if $busy;
    if ($over && !$gone) { put("gone 0\n"); $gone = 1 }
    if (!$follow) { put("end 0\n"); exit }
    select my $readable = $watched, undef, undef, $LOOK_SECONDS;
    exit if vec($readable, fileno STDIN, 1) && !sysread STDIN, my $word, 4096;
    sysread $news, $events, 4096;
}
