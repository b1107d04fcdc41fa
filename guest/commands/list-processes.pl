# Says a line for each process: its name, whether its unit has a process, when it was started, the bytes of stdout and
# stderr, and the end of its exit record. The arguments are name, directory, volatile directory and control group of
# each; a name "*" stands for all that the directory has, each in a directory of its own name.
# It is sent between single quotes, and has none.
use strict;
my ($NONBLOCK, $RECORD_BYTES_MOST) = (2048, 4096);

sub content {
    my ($path) = @_;
    # Nothing that is put in its place may hold this up.
    sysopen my $file, $path, $NONBLOCK or return "";
    my $size = (stat $file)[7] // 0;
    sysseek $file, $size - $RECORD_BYTES_MOST, 0 if $size > $RECORD_BYTES_MOST;
    sysread $file, my $data, $RECORD_BYTES_MOST;
    return $data // "";
}

sub tell_of {
    my ($name, $dir, $volatile, $cgroup) = @_;
    # Asked first: a unit that is gone has written its record before, and one that is there may not have begun.
    my $alive = -d $cgroup ? 1 : 0;
    my $record = content(-e "$volatile/exit" || !-e "$dir/exit" ? "$volatile/exit" : "$dir/exit");
    my @ended = $record =~ /^(ended [0-9]{1,12} [0-9]{1,3} [a-z-]{1,16})$/m;
    my @codes = $record =~ /^([0-9]{1,3} [0-9]{1,18} [0-9]{1,18})$/m;
    return if !$alive && !@codes && !-e "$dir/started";
    my ($began) = content("$dir/began") =~ /^([0-9.]{1,20})$/;
    my @sizes = map { (stat "$dir/$_")[7] // 0 } "stdout", "stderr";
    print join("\t", $name, $alive, $began // "-", @sizes, $ended[0] // "-", $codes[0] // "-"), "\n";
}

while (my ($name, $dir, $volatile, $cgroup) = splice @ARGV, 0, 4) {
    if ($name ne "*") { tell_of($name, $dir, $volatile, $cgroup); next }
    opendir my $all, $dir or next;
    for (sort readdir $all) { tell_of($_, "$dir/$_", "$volatile/$_", $cgroup =~ s/\*/$_/r) if /^[A-Za-z0-9][\w.-]*$/ }
}
