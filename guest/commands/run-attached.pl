# Becomes the process that a spec describes: in its group, as its user, within its limits, in its directory, with its
# environment. Before it does, it says so in a line on standard output: "+" and its id; or "-", a word and a sentence,
# when that cannot be. The spec is in variables of the environment, where no list of processes shows it. It is made of
# values, each with a letter, its length in bytes and a colon before it:
#   g  the group below that of all attached processes, made by this      m  a file of the group, "=" and its content
#   u  user, as name, uid or uid:gid     d  directory     e  a variable, NAME=value     i  standard input is fed
#   t  what its terminal is              r  number of a limit of the kernel, "=" and its value
#   a  a word of its command line        s  a line for the shell of the user
# One process, as a process costs an emulated machine a tenth of a second; perl, because it calls the kernel; and no
# module, not even those of the language: "strict" and "warnings" cost more than all of this. It is sent between single
# quotes, and has none.
my $GROUPS = "/sys/fs/cgroup/taskyard";
my ($SYS_SETRLIMIT, $SYS_SETGROUPS, $SYS_SETRESUID, $SYS_SETRESGID) = (160, 116, 117, 119);
my ($ENOENT, $EACCES, $NOT_FOUND, $NOT_RUN) = (2, 13, 127, 126);
# The next one says to the kernel that nothing is to change.
my $ID_MOST = 4294967294;
my $PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin";

sub refuse { my ($what, $why) = @_; $why =~ s/\s+/ /g; syswrite STDOUT, "-$what $why\n"; exit 1 }
sub lines { my ($path) = @_; open my $file, "<", $path or return; my @all = <$file>; chomp @all; return @all }
sub put { my ($path, $text) = @_; open my $file, ">", $path or return; syswrite $file, $text }

my %of;
my $spec = join "", map { $ENV{"LC_TASKYARD_$_"} // "" } 0 .. ($ENV{LC_TASKYARD} // 0);
while ($spec =~ m{\G(.)(\d+):}gcs) {
    my ($kind, $length) = ($1, $2);
    push @{$of{$kind}}, substr $spec, pos $spec, $length;
    pos($spec) += $length;
}

my ($group) = @{$of{g} // []};
if (defined $group) {
    # The kernel looks after such limits where they are wanted, and there alone: it is no small thing to it.
    if ($of{m}) { put("$_/cgroup.subtree_control", "+memory +pids") for "/sys/fs/cgroup", $GROUPS, "$GROUPS/$group" =~ s{/[^/]*$}{}r }
    mkdir "$GROUPS/$group" or refuse("group", "its group cannot be made: $!");
    for (@{$of{m} // []}) {
        my ($name, $value) = split /=/, $_, 2;
        put("$GROUPS/$group/$name", $value) or refuse("limits", "its limit $name cannot be set: $!");
    }
    put("$GROUPS/$group/cgroup.procs", "0") or refuse("group", "it cannot be put into its group: $!");
}

my ($wanted) = @{$of{u} // ["root"]};
my ($given, $given_group) = $wanted =~ /^(\d+)(?::(\d+))?$/;
my ($found) = grep { defined $given ? $$_[2] == $given : $$_[0] eq $wanted } map { [split /:/] } lines("/etc/passwd");
refuse("user", "the machine has no user $wanted") if !$found && !defined $given;
refuse("user", "ids end at $ID_MOST") if ($given // 0) > $ID_MOST || ($given_group // 0) > $ID_MOST;
my ($name, $uid, $gid, $home, $shell) = $found ? @$found[0, 2, 3, 5, 6] : ("", $given, $given, "/", "/bin/sh");
my %groups = ($gid => 1);
if (defined $given_group) {
    ($gid, %groups) = ($given_group, $given_group => 1);
} elsif ($found) {
    for (lines("/etc/group")) {
        my (undef, undef, $number, $members) = split /:/;
        $groups{$number} = 1 if grep { $_ eq $name } split /,/, $members // "";
    }
}
$shell = "/bin/sh" if !-x $shell || $shell =~ m{/(?:nologin|false)$};

my %environment = (HOME => $home, SHELL => $shell, LANG => "C.UTF-8");
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
if ($of{t}) { chown $uid, -1, \*STDIN }
elsif (!$of{i}) { open STDIN, "<", "/dev/null" }
my $list = pack "L*", sort { $a <=> $b } keys %groups;
syscall($SYS_SETGROUPS, scalar keys %groups, $list) == 0
    && syscall($SYS_SETRESGID, $gid + 0, $gid + 0, $gid + 0) == 0
    && syscall($SYS_SETRESUID, $uid + 0, $uid + 0, $uid + 0) == 0
    or refuse("user", "it cannot become the user $wanted: $!");

my ($directory) = @{$of{d} // []};
if (defined $directory) { chdir $directory or refuse("directory", "the directory $directory cannot be entered: $!") }
elsif (!(-d "/workspace" && (stat _)[0] != (stat "/")[0] && chdir "/workspace")) { chdir $home or chdir "/" }

my @command = $of{s} ? ($shell, "-c", @{$of{s}}) : @{$of{a}};
%ENV = %environment;
syswrite STDOUT, "+$$\n";
exec { $command[0] } @command;
my $error = $!;
my $why = $error == $ENOENT && $command[0] !~ m{/} ? "command not found" : $error;
syswrite STDERR, "$command[0]: $why\n";
exit($error == $ENOENT ? $NOT_FOUND : $NOT_RUN);
