# Starts a process in a unit of its own unless it was started: lays the files that standard input has, each after a line
# with its mode, owner, size and place, and has systemd run the rest of the arguments.
# Exit code 5: it was started before. 6: as another one. 7: the machine has as many as it keeps. 8: no such user.
# One process, as a process costs an emulated machine a tenth of a second. It is sent between single quotes, and has
# none.
use strict;
my ($dir, $volatile, $cgroup, $digest, $user, $most, @unit) = @ARGV;

sub content { my ($path) = @_; open my $file, "<", $path or return ""; local $/; return <$file> // "" }
sub fail { print STDERR "$_[0]\n"; exit 1 }
sub make_directory { my ($path) = @_; if (!-d $path) { make_directory($path =~ s{/[^/]*$}{}r); mkdir $path, 0755 } }

# The lock is held as long as the start takes: systemd-run, which takes the place of this program, has it too.
$^F = 9;
make_directory($_) for $dir, $volatile;
open my $lock, ">>", "$volatile/start.lock" or fail("$volatile: $!");
flock $lock, 2 or fail("$volatile: $!");
# One that was killed before it began has a record, and no mark.
if (-e "$dir/started" || -d $cgroup || ((stat "$volatile/exit")[7] // 0) > 1) {
    my $before = content("$volatile/spec");
    exit($digest ne "-" && $before ne "" && $before ne $digest ? 6 : 5);
}
if ($most) {
    opendir my $others, $dir =~ s{/[^/]*$}{}r or fail("$dir: $!");
    my @others = grep { !/^\./ } readdir $others;
    if (@others > $most) { rmdir $dir; exit 7 }
}
if ($user !~ /^\d/ && !defined getpwnam $user) { rmdir $dir; exit 8 }
binmode STDIN;
while (defined(my $line = <STDIN>)) {
    my ($mode, $owner, $size, $place) = $line =~ /^([0-7]+) (\S+) (\d+) (.+)$/ or fail("only a part of it came");
    my $data = "";
    read(STDIN, $data, $size) == $size or fail("only a part of it came") if $size;
    make_directory($place =~ s{/[^/]*$}{}r);
    unlink $place;
    # Made for nobody else to read, whatever its mode will be.
    umask 077;
    open my $file, ">", $place or fail("$place: $!");
    print $file $data;
    close $file or fail("$place: $!");
    umask 022;
    chmod oct $mode, $place;
    if ($owner ne "root") { my @entry = getpwnam $owner; chown @entry[2, 3], $place if @entry }
}
-e "$dir/argv" or fail("only a part of it came");
if (-e "$volatile/stopped") {
    mkdir "$dir/started";
    open my $record, ">>", "$volatile/exit" or fail("$volatile/exit: $!");
    printf $record "ended %s 9 -\n%s 0 0\n", time, 137;
    exit 0;
}
exec { $unit[0] } @unit;
