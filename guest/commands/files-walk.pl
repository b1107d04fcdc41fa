# Looks at files: at some, or at all below one, by depth and pattern, with what they hold where it is asked for.
my ($user, $what, @given) = request();
become($user);
if ($what eq "stat") {
    my ($follow, @paths) = @given;
    for my $path (@paths) { my @found = facts($path, $follow) or fail($path); put("I", join "\0", $path, @found) }
    finish();
}
my ($root, $depth, $pattern, $whole, $kinds, $most, $contents, $hard) = @given;
my ($count, $quiet, %first) = (0, 0);
my $wanted = length $pattern ? qr/\A(?:$pattern)\z/s : undef;

sub letter { my $kind = $_[0] & $TYPE; return $kind == $REGULAR ? "f" : $kind == $FOLDER ? "d" : $kind == $LINK ? "l" : "o" }

sub show {
    my ($path, $shown, @found) = @_;
    # Whoever waits for something to be found is told that the search goes on.
    if (++$quiet % 2000 == 0) { put("K", ""); flush() }
    return if length $kinds && index($kinds, letter($found[0])) < 0;
    if ($wanted) {
        my $name = $whole ? $shown : $shown =~ m{([^/]*)\z} && $1;
        utf8::decode($name);
        return if $name !~ $wanted;
    }
    finish("more") if $count++ >= $most;
    if (!$contents) { put("I", join "\0", $shown, @found); return }
    if (letter($found[0]) ne "f") { put("I", join "\0", $shown, @found); return }
    if ($hard && $found[9] > 1) {
        if (defined(my $before = $first{$found[10]})) { $found[11] = $before; put("L", join "\0", $shown, @found); return }
        $first{$found[10]} = $shown;
    }
    (my $file, @found) = open_file($path, $shown, $NOFOLLOW);
    put("I", join "\0", $shown, @found);
    put_content($file, 0, $found[5], $found[6]) or fail($shown);
}

sub walk {
    my ($directory, $above, $left) = @_;
    opendir my $open, $directory or return $contents || $above eq "" ? fail($above eq "" ? $root : $above) : put("W", join "\0", $! + 0, $above);
    my @names = sort grep { $_ ne "." && $_ ne ".." } readdir $open;
    closedir $open;
    for my $name (@names) {
        my ($path, $shown) = ("$directory/$name", $above eq "" ? $name : "$above/$name");
        my @found = facts($path, 0);
        if (!@found) { next if $! == $MISSING; fail($shown) }
        show($path, $shown, @found);
        walk($path, $shown, $left - 1) if $left != 1 && ($found[0] & $TYPE) == $FOLDER;
    }
}

my @found = facts($root, 1) or fail($root);
if (($found[0] & $TYPE) == $FOLDER) {
    show($root, ".", @found) if $contents;
    walk($root eq "/" ? "" : $root, "", $depth);
} elsif ($contents) {
    my ($name) = $root =~ m{([^/]+)/*\z};
    my ($file, @opened) = open_file($root, $root, 0);
    put("I", join "\0", $name, @opened);
    put_content($file, 0, @opened[5, 6]) or fail($root);
} else { fail($root, $NO_DIRECTORY) }
finish("");
