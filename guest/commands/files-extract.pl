# Lays out a tree: a frame for each member, then what it holds. No way to a member leads through a link, whoever made
# it: each directory is entered from the one above it, and every name is one of the directory that was entered.
my ($user, $root, $keep) = request();
become($user);
my ($inside, $whole, $files, $bytes, @folders) = ("\0", $root, 0, 0);
sysopen $start, ".", $PLACE | $DIRECTORY or fail($root);
if (!-d $root) {
    -e $root || -l $root and fail($root, $NO_DIRECTORY);
    make_parents($root);
    $whole = beside($root);
    mkdir $whole, 0700 or fail($root);
    $draft_tree = $whole;
}
sysopen my $top, $whole, $PLACE | $DIRECTORY or fail($root);

sub enter {
    my ($directory, $shown) = @_;
    return if $directory eq $inside;
    chdir $top or fail($shown);
    $inside = "\0";
    for my $part (split m{/}, $directory) {
        my $next;
        if (!sysopen $next, $part, $PLACE | $DIRECTORY | $NOFOLLOW) {
            $! == $MISSING && mkdir $part, 0777 or fail($shown, -l $part ? "link" : $! + 0);
            sysopen $next, $part, $PLACE | $DIRECTORY | $NOFOLLOW or fail($shown);
        }
        chdir $next or fail($shown);
    }
    $inside = $directory;
}
sub halves { my ($path) = @_; return $path =~ m{^(.*)/([^/]+)\z}s ? ($1, $2) : ("", $path) }
sub place_it {
    my ($name, $shown) = @_;
    rename $draft, $name or fail($shown);
    # Another name of the same file is not renamed.
    unlink $draft;
    $draft = "";
}

while (1) {
    my ($kind, $fields) = frame();
    last if $kind eq "Z";
    my ($letter, $path, $mode, $uid, $gid, $time, $target) = split /\0/, $fields, -1;
    ($uid, $gid) = ("", "") if !$keep;
    # A program that was to run as another is nobody here who may give that away.
    $mode &= 01777 if !$keep;
    if ($path eq ".") { push @folders, [$path, $mode, $uid, $gid, $time] if defined $draft_tree; next }
    my ($directory, $name) = halves($path);
    if ($letter eq "h") {
        my ($target_directory, $target_name) = halves($target);
        enter($target_directory, $target);
        sysopen my $from, ".", $PLACE | $DIRECTORY or fail($path);
        enter($directory, $path);
        my $made = draft_name();
        syscall($SYS_LINKAT, fileno $from, $target_name, $HERE, $made, 0) == 0 or fail($path);
        $draft = $made;
        place_it($name, $path);
        next;
    }
    enter($directory, $path);
    if ($letter eq "d") {
        mkdir $name, 0700 or $! == $EXISTS && !-l $name && -d $name or fail($path, -l $name ? "link" : $! + 0);
        push @folders, [$path, $mode, $uid, $gid, $time];
        next;
    }
    my $made = draft_name();
    if ($letter eq "l") {
        symlink $target, $made or fail($path);
        $draft = $made;
        if ($keep) { system "chown", "-h", "--", "$uid:$gid", $draft }
    } else {
        sysopen my $file, $made, $CREATE | $NOFOLLOW, 0600 or fail($path);
        $draft = $made;
        $bytes += fill($file, $path);
        set_access($file, $path, $mode, $uid, $gid);
        close $file or fail($path);
    }
    set_time($draft, $time) if $time ne "";
    place_it($name, $path);
    $files++;
}
for my $folder (reverse @folders) {
    my ($path, $mode, $uid, $gid, $time) = @$folder;
    enter($path eq "." ? "" : $path, $path);
    set_access(".", $path, $mode, $uid, $gid);
    set_time(".", $time) if $time ne "";
}
if (defined $draft_tree) {
    chdir $start;
    grep { $$_[0] eq "." } @folders or chmod 0755, $whole;
    rename $whole, $root or fail($root);
    undef $draft_tree;
}
finish($files, $bytes);
