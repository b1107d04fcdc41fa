# Starts processes that end with their clients, and ends them: one such program for each connection to the guest. It lives
# as long as the connection, for a process costs an emulated machine a tenth of a second, and perl another one: here each
# start is a fork of what is warm. Argument: the name of the directory of this connection, among the control groups and
# in memory.
#
# The host says on standard input, in lines: "prepare KEY", "spec KEY LENGTH" with so many bytes after it, "end KEY",
# "signal KEY NAME", and "program NAME LENGTH" with the program after it. Then a shell on a channel of its own writes "KEY ID" with its own id to the FIFO "requests"; the
# process gets the standard streams of that shell, which has them as 3 to 5, and the shell the exit code and signal from the FIFO "KEY".
#
# A process says on its standard output, before it becomes what it is to be: "+" and its id; or "-", a word and a sentence,
# when that cannot be. It is in a control group of its own, which the kernel kills whole: also what has left its session
# or ignores signals. So are all of them when standard input ends, which it does with the connection.
#
# A spec is made of values, each with a letter, its length in bytes and a colon before it:
#   m  a file of the group, "=" and its content   r  number of a limit of the kernel, "=" and its value
#   u  user, as name, uid or uid:gid     d  directory     e  a variable, NAME=value     i  standard input is fed
#   t  what its terminal is     a  a word of its command line     s  a line for the shell of the user
#   p  a program of ours, by its name, in place of all others: it runs as root, in no group, and ends with its streams
# It is sent between single quotes, and has none.
use strict;
my ($own) = @ARGV;
my ($ROOT, $GROUPS, $PLACES) = ("/sys/fs/cgroup", "/sys/fs/cgroup/taskyard", "/run/taskyard-attached");
# The kernel's numbers for x86-64, as in its own headers.
my ($SYS_SETSID, $SYS_SETGROUPS, $SYS_SETRESUID, $SYS_SETRESGID, $SYS_MKNOD) = (112, 116, 117, 119, 133);
my ($SYS_CLOSE, $SYS_SETRLIMIT, $SYS_MOUNT, $SYS_PIDFD_OPEN, $SYS_PIDFD_GETFD) = (3, 160, 165, 434, 438);
my ($TIOCSCTTY, $S_IFIFO, $NO_HANG, $REMOUNT) = (0x540E, 0010000, 1, 32 | 2 | 4 | 8);
my ($ENOENT, $NOT_FOUND, $NOT_RUN, $READ_WRITE) = (2, 127, 126, 2);
# The next one says to the kernel that nothing is to change.
my $ID_MOST = 4294967294;
my $PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin";
my ($PAUSE, $TRIES) = (0.05, 200);
my ($groups, $place) = ("$GROUPS/$own", "$PLACES/$own");
my (%spec, %shell, %result, %process, %watch, %ending);

sub lines { my ($path) = @_; open my $file, "<", $path or return; my @all = <$file>; chomp @all; return @all }
sub put { my ($path, $text) = @_; open my $file, ">", $path or return; syswrite $file, $text }

sub prepare {
    my ($key) = @_;
    mkdir "$groups/$key";
    my $path = "$place/$key";
    syscall $SYS_MKNOD, $path, $S_IFIFO | 0600, 0;
    result($key) if $shell{$key};
}

# What the shell waits for. It is open for both, so that what is written waits for its reader.
sub result {
    my ($key) = @_;
    if (!$result{$key}) { sysopen my $file, "$place/$key", $READ_WRITE or return; $result{$key} = $file }
    return $result{$key};
}

# A program is read once, and begun for the first time by each fork that is to be it: it finds its variables new.
sub learn { my ($name, $text) = @_; eval "package $name; sub whole_program {\n$text\n}" }

# When both are there: what is to be started, and the shell whose streams it gets.
sub start {
    my ($key) = @_;
    return if !defined $spec{$key} || !$shell{$key} || $process{$key} || !result($key);
    my $child = fork;
    become($key) if defined $child && !$child;
    delete $spec{$key};
    return syswrite result($key), "$NOT_RUN 0\n" if !defined $child;
    $process{$key} = $child;
    # Readable when the process has ended.
    $watch{$key} = syscall $SYS_PIDFD_OPEN, $child, 0;
}

sub reap {
    for my $key (keys %watch) {
        next if waitpid($process{$key}, $NO_HANG) != $process{$key};
        syswrite result($key), ($? >> 8) . " " . ($? & 127) . "\n";
        syscall $SYS_CLOSE, delete $watch{$key};
    }
}

sub deliver {
    my ($key, $name) = @_;
    return put("$groups/$key/cgroup.kill", "1") if $name eq "KILL";
    my $id = $process{$key} or return;
    kill $name, -$id if grep { getpgrp($_) == $id } lines("$groups/$key/cgroup.procs");
}

sub end {
    my ($key) = @_;
    put("$groups/$key/cgroup.kill", "1");
    syswrite result($key), "$NOT_RUN 0\n" if !$process{$key} && result($key);
    $ending{$key} = $TRIES;
    remove();
}

# A group can be removed when its last process is gone. What a root of the machine has put below it is not looked for.
sub remove {
    for my $key (keys %ending) {
        next if $watch{$key};
        next if !rmdir "$groups/$key" and -d "$groups/$key" and --$ending{$key} > 0;
        unlink "$place/$key";
        delete $_->{$key} for \(%spec, %shell, %result, %process, %ending);
    }
}

sub refuse { my ($what, $why) = @_; $why =~ s/\s+/ /g; syswrite STDOUT, "-$what $why\n"; exit 1 }

# In the child: gets the streams of the shell, and becomes the process.
sub become {
    my ($key) = @_;
    my %of;
    my $spec = $spec{$key};
    while ($spec =~ m{\G(.)(\d+):}gcs) {
        my ($kind, $length) = ($1, $2);
        push @{$of{$kind}}, substr $spec, pos $spec, $length;
        pos($spec) += $length;
    }
    my $shell = syscall $SYS_PIDFD_OPEN, $shell{$key} + 0, 0;
    my @streams = map { syscall $SYS_PIDFD_GETFD, $shell, $_, 0 } 3 .. 5;
    exit $NOT_RUN if grep { $_ < 0 } @streams;
    syscall $SYS_SETSID;
    open STDOUT, ">&", $streams[1];
    open STDERR, ">&", $streams[2];
    if ($of{t} || $of{i}) { open STDIN, "<&", $streams[0] } else { open STDIN, "<", "/dev/null" }
    ioctl STDIN, $TIOCSCTTY, 1 if $of{t};
    $SIG{PIPE} = "DEFAULT";
    if ($of{p}) { $of{p}[0]->whole_program; exit }
    for (@{$of{m} // []}) {
        my ($name, $value) = split /=/, $_, 2;
        # The kernel looks after such limits where they are wanted, and there alone: it is no small thing to it.
        put("$_/cgroup.subtree_control", "+memory +pids") for $ROOT, $GROUPS, $groups;
        put("$groups/$key/$name", $value) or refuse("limits", "its limit $name cannot be set: $!");
    }
    put("$groups/$key/cgroup.procs", "0") or refuse("group", "it cannot be put into its group: $!");
    my ($wanted) = @{$of{u} // ["root"]};
    my ($given, $given_group) = $wanted =~ /^(\d+)(?::(\d+))?$/;
    my ($found) = grep { defined $given ? $$_[2] == $given : $$_[0] eq $wanted } map { [split /:/] } lines("/etc/passwd");
    refuse("user", "the machine has no user $wanted") if !$found && !defined $given;
    refuse("user", "ids end at $ID_MOST") if ($given // 0) > $ID_MOST || ($given_group // 0) > $ID_MOST;
    my ($name, $uid, $gid, $home, $login) = $found ? @$found[0, 2, 3, 5, 6] : ("", $given, $given, "/", "/bin/sh");
    my %groups = ($gid => 1);
    if (defined $given_group) {
        ($gid, %groups) = ($given_group, $given_group => 1);
    } elsif ($found) {
        for (lines("/etc/group")) {
            my (undef, undef, $number, $members) = split /:/;
            $groups{$number} = 1 if grep { $_ eq $name } split /,/, $members // "";
        }
    }
    $login = "/bin/sh" if !-x $login || $login =~ m{/(?:nologin|false)$};

    my %environment = (HOME => $home, SHELL => $login, LANG => "C.UTF-8");
    $environment{PATH} = $home eq "/" ? $PATH : "$home/.local/bin:$PATH";
    @environment{qw(USER LOGNAME)} = ($name, $name) if $name ne "";
    for ((map { s/^"|"$//gr } grep { /^\w+=/ } lines("/etc/environment")), map { "TERM=$_" } @{$of{t} // []}) {
        my ($variable, $value) = split /=/, $_, 2;
        $environment{$variable} = $value;
    }
    for (@{$of{e} // []}) { my ($variable, $value) = split /=/, $_, 2; $environment{$variable} = $value }

    for (@{$of{r} // []}) {
        my ($number, $value) = split /=/;
        my $pair = pack "QQ", $value, $value;
        syscall($SYS_SETRLIMIT, $number + 0, $pair) == 0 or refuse("limits", "its limit $number cannot be set: $!");
    }
    chown $uid, -1, \*STDIN if $of{t};
    my $list = pack "L*", sort { $a <=> $b } keys %groups;
    syscall($SYS_SETGROUPS, scalar keys %groups, $list) == 0
        && syscall($SYS_SETRESGID, $gid + 0, $gid + 0, $gid + 0) == 0
        && syscall($SYS_SETRESUID, $uid + 0, $uid + 0, $uid + 0) == 0
        or refuse("user", "it cannot become the user $wanted: $!");

    my ($directory) = @{$of{d} // []};
    if (defined $directory) { chdir $directory or refuse("directory", "the directory $directory cannot be entered: $!") }
    elsif (!(-d "/workspace" && (stat _)[0] != (stat "/")[0] && chdir "/workspace")) { chdir $home or chdir "/" }

    my @command = $of{s} ? ($login, "-c", @{$of{s}}) : @{$of{a}};
    %ENV = %environment;
    syswrite STDOUT, "+$$\n";
    exec { $command[0] } @command;
    my $error = $!;
    my $why = $error == $ENOENT && $command[0] !~ m{/} ? "command not found" : $error;
    syswrite STDERR, "$command[0]: $why\n";
    exit($error == $ENOENT ? $NOT_FOUND : $NOT_RUN);
}

umask 077;
mkdir $_ for $GROUPS, $PLACES;
mkdir $_ or die "$_: $!\n" for $groups, $place;
# Whoever moves a process into a group waits for all processors, unless the kernel is told to have that done beforehand.
my ($type, $options) = ("cgroup2", "nsdelegate,memory_recursiveprot,favordynmods");
syscall $SYS_MOUNT, $type, $ROOT, $type, $REMOUNT, $options;
my $path = "$place/requests";
syscall $SYS_MKNOD, $path, $S_IFIFO | 0600, 0;
sysopen my $requests, $path, $READ_WRITE or die "$path: $!\n";
$SIG{PIPE} = "IGNORE";
umask 022;
syswrite STDOUT, "ready\n";

my ($told, $asked) = ("", "");
while (1) {
    vec(my $readable = "", 0, 1) = 1;
    vec($readable, fileno $requests, 1) = 1;
    vec($readable, $_, 1) = 1 for values %watch;
    my $some = select $readable, undef, undef, %ending ? $PAUSE : undef;
    reap();
    remove() if %ending;
    next if $some <= 0;
    if (vec $readable, fileno $requests, 1) {
        sysread $requests, $asked, 65536, length $asked;
        while ($asked =~ s/^(\w+) (\d+)\n//) {
            $shell{$1} = $2;
            # Open from now on, so that whoever waits there hears of the end of all this.
            result($1);
            start($1);
        }
    }
    next if !vec $readable, 0, 1;
    last if !sysread STDIN, $told, 262144, length $told;
    while ((my $length = index $told, "\n") >= 0) {
        my ($verb, $key, $more) = split / /, substr $told, 0, $length;
        if ($verb eq "spec" || $verb eq "program") {
            last if length $told < $length + 1 + $more;
            my $text = substr $told, $length + 1, $more, "";
            if ($verb eq "program") { learn($key, $text) } else { $spec{$key} = $text; start($key) }
        }
        substr $told, 0, $length + 1, "";
        prepare($key) if $verb eq "prepare";
        end($key) if $verb eq "end";
        deliver($key, $more) if $verb eq "signal";
    }
}
put("$groups/cgroup.kill", "1");
for (1 .. $TRIES) {
    rmdir for glob "$groups/*/";
    last if rmdir $groups;
    select undef, undef, undef, $PAUSE;
}
unlink for glob "$place/*";
rmdir $place;
