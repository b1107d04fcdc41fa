# Changes files: a frame for each change, answered by one; the first that fails is the last.
my ($user) = request();
become($user);

sub run {
    my ($path, @command) = @_;
    my $child = open my $words, "-|";
    defined $child or fail($path);
    if (!$child) { open STDERR, ">&", \*STDOUT; exec @command or exit 1 }
    my $said = join "", grep { defined } map { scalar <$words> } 1 .. 3;
    { local $/ = \$PIECE; 1 while <$words> }
    close $words or fail($path, $said =~ /No space left/ ? 28 : $said =~ /Permission denied|not permitted/ ? 13 : 5, $said);
}

sub change_directory {
    my ($path, $mode, $owner, $group, $parents) = @_;
    make_parents($path) if $parents;
    if (!mkdir $path, 0777) { $parents && $! == $EXISTS && -d $path or fail($path) }
    set_access($path, $path, $mode, $owner, $group);
    return "";
}

sub change_place {
    my ($from, $to, $over) = @_;
    defined facts($from, 0) or fail($from);
    make_parents($to);
    my $only_new = $over ? 0 : 1;
    return "" if syscall($SYS_RENAMEAT2, $HERE, "$from", $HERE, "$to", $only_new) == 0;
    $! == $OTHER_DISK or fail($to);
    fail($to, $EXISTS) if $only_new && defined facts($to, 0);
    sysopen $start, ".", $PLACE | $DIRECTORY or fail($to);
    $draft_tree = beside($to);
    run($from, "cp", "-a", "-T", "--", $from, $draft_tree);
    syscall($SYS_RENAMEAT2, $HERE, "$draft_tree", $HERE, "$to", $only_new) == 0 or fail($to);
    undef $draft_tree;
    run($from, "rm", "-rf", "--", $from);
    return "";
}

sub remove {
    my ($path, $directories, $missing) = @_;
    my @found = facts($path, 0);
    if (!@found) { return 0 if $! == $MISSING && $missing; fail($path) }
    if (($found[0] & $TYPE) != $FOLDER) { unlink $path or fail($path) }
    elsif ($directories eq "refuse") { fail($path, $IS_DIRECTORY) }
    elsif ($directories eq "empty") { rmdir $path or fail($path) }
    else { run($path, "rm", "-rf", "--", $path) }
    return 1;
}

sub replace {
    my ($given, $old, $new, $most) = @_;
    my $path = resolved($given);
    my ($from, @found) = open_file($path, $given, 0);
    $draft = beside($path);
    sysopen my $to, $draft, $CREATE | $NOFOLLOW, 0600 or do { $draft = ""; fail($given) };
    my ($kept, $count, $over) = ("", 0, 0);
    until ($over) {
        my $got = sysread $from, $kept, $PIECE, length $kept;
        defined $got or fail($given);
        $over = !$got;
        my ($text, $at) = ("", 0);
        while (($most eq "" || $count < $most) && (my $place = index $kept, $old, $at) >= 0) {
            $text .= substr($kept, $at, $place - $at) . $new;
            $at = $place + length $old;
            $count++;
        }
        # The beginning of what is looked for may be the end of what is there.
        my $end = length($kept) - ($over ? 0 : length($old) - 1);
        if ($end > $at) { $text .= substr $kept, $at, $end - $at; $at = $end }
        substr $kept, 0, $at, "";
        for (my $done = 0; $done < length $text;) {
            my $written = syswrite $to, $text, length($text) - $done, $done;
            $written or fail($given);
            $done += $written;
        }
    }
    if ($count) {
        set_access($to, $given, $found[0] & 07777, $> ? "" : $found[1], $> ? "" : $found[2]);
        close $to or fail($given);
        rename $draft, $path or fail($given);
        $draft = "";
    } else { unlink $draft; $draft = "" }
    return $count;
}

my %CHANGES = (
    directory => \&change_directory,
    move => \&change_place,
    remove => \&remove,
    access => sub { my ($path, @access) = @_; set_access($path, $path, @access); return "" },
    replace => \&replace,
);
while (1) {
    my ($kind, $fields) = frame();
    last if $kind eq "Z";
    my ($name, @given) = split /\0/, $fields, -1;
    put("A", $CHANGES{$name}->(@given));
    flush();
}
finish();
