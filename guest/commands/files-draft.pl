# How programs write: into a draft beside the place, which takes its name when it is whole. Whatever ends the program,
# no draft is left.
my ($draft, $drafts, $draft_tree, $start) = ("", 0);
$SIG{PIPE} = "IGNORE";
$SIG{HUP} = $SIG{TERM} = sub { exit 1 };
END {
    unlink $draft if length $draft;
    if (defined $draft_tree) { chdir $start; system "rm", "-rf", "--", $draft_tree }
}
sub draft_name { return sprintf ".taskyard-%d-%06x-%d", $$, rand 2**24, ++$drafts }
sub parent { my ($path) = @_; return $path =~ m{^(.*?)/+[^/]+/*\z}s ? ($1 eq "" ? "/" : $1) : "." }
sub beside { my ($path) = @_; return parent($path) . "/" . draft_name() }

sub make_parents {
    my ($path) = @_;
    my $above = parent($path);
    return if -d $above;
    make_parents($above) if $above ne "/" && $above ne ".";
    mkdir $above, 0777 or $! == $EXISTS && -d $above or fail($above);
}

# Where a path leads at last.
sub resolved {
    my ($path) = @_;
    my $shown = $path;
    for (1 .. 40) {
        my $target = readlink $path;
        return $path if !defined $target;
        $path = $target =~ m{^/} ? $target : parent($path) . "/$target";
    }
    fail($shown, $LOOP);
}

# Into the file, from the frames that come, until the one that ends it.
sub fill {
    my ($file, $shown) = @_;
    my $at = 0;
    while (1) {
        my ($kind, $data) = frame();
        if ($kind eq "D") {
            for (my $done = 0; $done < length $data;) {
                my $count = syswrite $file, $data, length($data) - $done, $done;
                $count or fail($shown);
                $done += $count;
            }
            $at += length $data;
        } elsif ($kind eq "H") {
            $at += $data;
            sysseek $file, $at, 0 or fail($shown);
        } else { last }
    }
    truncate $file, $at or fail($shown);
    return $at;
}

sub set_time {
    my ($path, $time) = @_;
    my ($seconds, $part) = split /\./, $time;
    my $times = pack "q q q q", $seconds, $part, $seconds, $part;
    syscall $SYS_UTIMENSAT, $HERE, "$path", $times, $NO_LINK;
}

# Owner, group and mode of a file or an open one, where they are given.
sub set_access {
    my ($what, $shown, $mode, $owner, $group) = @_;
    if ($owner ne "" || $group ne "") {
        my $uid = $owner eq "" ? -1 : number_of_user($owner) // fail($owner, "user");
        my $gid = $group eq "" ? -1 : number_of_group($group) // fail($group, "user");
        chown $uid, $gid, $what or fail($shown);
    }
    if ($mode ne "") { chmod $mode, $what or fail($shown) }
}
