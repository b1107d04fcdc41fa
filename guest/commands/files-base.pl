# What every program for files begins with: frames, the caller, what is known of a file.
# A frame is a letter, four bytes of length and as many bytes; a hole of a file, H, has none. The first one that comes
# holds the request. Nothing of perl is loaded, as that takes an emulated machine longer than the work. It is sent
# between single quotes, and has none.
use strict;
my ($SYS_STATX, $SYS_LINKAT, $SYS_UTIMENSAT, $SYS_RENAMEAT2) = (332, 265, 280, 316);
my ($HERE, $EMPTY_PATH, $NO_LINK) = (-100, 0x1000, 0x100);
my ($NONBLOCK, $NOFOLLOW, $DIRECTORY, $PLACE, $CREATE) = (0x800, 0x20000, 0x10000, 0x200000, 0x1 | 0x40 | 0x80);
my ($TYPE, $REGULAR, $FOLDER, $LINK) = (0170000, 0100000, 0040000, 0120000);
my ($MISSING, $EXISTS, $OTHER_DISK, $NO_DIRECTORY, $IS_DIRECTORY, $LOOP) = (2, 17, 18, 20, 21, 40);
my $PIECE = 65536;
my ($came, $leaving) = ("", "");
my (%owners, %groups);

sub flush {
    while (length $leaving) {
        my $count = syswrite STDOUT, $leaving;
        exit 1 if !$count;
        substr $leaving, 0, $count, "";
    }
}
sub put { $leaving .= pack("a N", $_[0], length $_[1]) . $_[1]; flush() if length $leaving >= $PIECE }
sub put_hole {
    my ($count) = @_;
    for (my $part; $count > 0; $count -= $part) {
        $part = $count > 2**30 ? 2**30 : $count;
        $leaving .= pack "a N", "H", $part;
    }
    flush() if length $leaving >= $PIECE;
}
sub finish { put("Z", join "\0", @_); flush(); exit }
# A reason is a number of the system, or a word.
sub fail { my ($path, $reason, $words) = @_; put("E", join "\0", $reason || $! + 0 || 5, $path, $words // ""); flush(); exit }

sub take {
    my ($count) = @_;
    while (length $came < $count) { sysread STDIN, $came, $PIECE, length $came or exit 1 }
    return substr $came, 0, $count, "";
}
sub frame { my ($kind, $count) = unpack "a N", take(5); return ($kind, $kind eq "H" ? $count : take($count)) }
sub request { my ($kind, $fields) = frame(); return split /\0/, $fields, -1 }

sub number_of_user { my ($name) = @_; return $name =~ /^\d+$/ ? $name : scalar getpwnam $name }
sub number_of_group { my ($name) = @_; return $name =~ /^\d+$/ ? $name : scalar getgrnam $name }

sub become {
    my ($name, $group) = split /:/, $_[0], 2;
    my @user = $name =~ /^\d+$/ ? getpwuid $name : getpwnam $name;
    @user || $name =~ /^\d+$/ or fail($name, "user");
    my ($uid, $gid, $home) = @user ? @user[2, 3, 7] : ($name, $name, "/");
    if (defined $group) { $gid = number_of_group($group) // fail($group, "user") }
    if ($uid) {
        my @more = ($gid);
        while (@user and my @entry = getgrent) { push @more, $entry[2] if grep { $_ eq $user[0] } split / /, $entry[3] }
        $) = join " ", $gid, @more;
        $( = $gid;
        ($<, $>) = ($uid, $uid);
        $< == $uid && $> == $uid or fail($name, 1);
    }
    umask 022;
    chdir "/workspace" or chdir $home or chdir "/";
}

# Mode, ids, names of owner and group, size, blocks, times of change and of birth, links, device and number, target.
sub facts {
    my ($path, $follow, $file) = @_;
    my ($found, $place, $name, $flags) = ("\0" x 256, $HERE, "$path", $follow ? 0 : $NO_LINK);
    ($place, $name, $flags) = (fileno $file, "", $EMPTY_PATH) if $file;
    syscall($SYS_STATX, $place, $name, $flags, 0xfff, $found) == 0 or return;
    my ($mask, $links, $uid, $gid, $mode, $number, $size, $blocks, $born, $born_part, $changed, $changed_part, @device) =
        unpack "L x12 L3 S x2 Q3 x24 q L x20 q L x12 L2", $found;
    my $target = ($mode & $TYPE) == $LINK && !$file && !$follow ? readlink $path : "";
    return ($mode, $uid, $gid, $owners{$uid} //= getpwuid($uid) // "", $groups{$gid} //= getgrgid($gid) // "", $size,
        $blocks, sprintf("%d.%09d", $changed, $changed_part), $mask & 0x800 ? sprintf("%d.%09d", $born, $born_part) : "",
        $links, join(":", @device, $number), $target // "");
}

# What a file holds from one place to another. What it has lost meanwhile is a hole.
sub put_content {
    my ($file, $at, $size, $blocks) = @_;
    my $holes = $blocks * 512 < $size;
    while ($at < $size) {
        my $end = $size;
        if ($holes) {
            my $data = sysseek $file, $at, 3;
            if (defined $data || $! == 6) {
                $data = defined $data && $data < $size ? $data + 0 : $size;
                put_hole($data - $at);
                $at = $data;
                last if $at >= $size;
                my $hole = sysseek $file, $at, 4;
                $end = $hole + 0 if defined $hole && $hole < $size;
            } else { $holes = 0 }
        }
        sysseek $file, $at, 0;
        while ($at < $end) {
            # Read to where it leaves from, behind its head.
            my $before = length $leaving;
            $leaving .= "D....";
            my $count = sysread $file, $leaving, $end - $at < $PIECE ? $end - $at : $PIECE, $before + 5;
            if (!$count) {
                substr $leaving, $before, 5, "";
                defined $count or return 0;
                put_hole($size - $at);
                return 1;
            }
            substr $leaving, $before + 1, 4, pack "N", $count;
            $at += $count;
            flush() if length $leaving >= $PIECE;
        }
    }
    return 1;
}

# A regular file, opened and looked at. Others are not opened: that alone may hang, or do something.
sub open_file {
    my ($path, $shown, $flags) = @_;
    my @found = facts($path, !$flags) or fail($shown);
    ($found[0] & $TYPE) == $REGULAR or fail($shown, ($found[0] & $TYPE) == $FOLDER ? $IS_DIRECTORY : "type");
    sysopen my $file, $path, $NONBLOCK | $flags or fail($shown);
    @found = facts("", 0, $file) or fail($shown);
    ($found[0] & $TYPE) == $REGULAR or fail($shown, "type");
    return ($file, @found);
}
