# Reads one file: whole, from one byte to another, the last bytes, or some of its lines.
my ($user, $path, $first, $last, $line, $lines) = request();
become($user);
my ($file, @found) = open_file($path, $path, 0);
my ($size, $made) = ($found[5]);
if (!$size) {
    # Files of the kernel say nothing of their size. What is longer than this may have no end.
    $made = "";
    while (length $made <= 2**20) { my $count = sysread $file, $made, $PIECE, length $made; defined $count or fail($path); last if !$count }
    $size = $found[5] = length $made;
    fail($path, "endless") if $size > 2**20;
}
my ($at, $end) = (0, $size);
if ("$first$last" ne "") {
    if ($first eq "") { $at = $last < $size ? $size - $last : 0 } else { $at = $first; $end = $last + 1 if $last ne "" && $last < $size }
    $at < $size && $at < $end or fail($path, "range", $size);
}
put("I", join "\0", $path, @found);
put("R", join "\0", $at, $line eq "" ? $end - $at : "");
if ($line eq "") {
    if (defined $made) { put("D", substr $made, $at, $end - $at) } else { put_content($file, $at, $end, $found[6]) or fail($path) }
    finish();
}

sub place { my ($piece, $count) = @_; my $place = -1; $place = index $$piece, "\n", $place + 1 for 1 .. $count; return $place + 1 }

my $skip = $line - 1;
while ($at < $size && $lines ne "0") {
    my $piece = $made;
    if (!defined $made) {
        my $count = sysread $file, $piece, $size - $at < $PIECE ? $size - $at : $PIECE;
        defined $count or fail($path);
        last if !$count;
    }
    $at += length $piece;
    if ($skip) {
        my $ends = $piece =~ tr/\n//;
        if ($ends < $skip) { $skip -= $ends; put("K", ""); next }
        substr $piece, 0, place(\$piece, $skip), "";
        $skip = 0;
    }
    if ($lines ne "") {
        my $ends = $piece =~ tr/\n//;
        if ($ends >= $lines) { $piece = substr $piece, 0, place(\$piece, $lines); $lines = 0 } else { $lines -= $ends }
    }
    put("D", $piece);
}
finish();
