# Writes one file whole.
my ($user, $given, $mode, $owner, $group, $time, $parents, $new) = request();
become($user);
my $path = resolved($given);
fail($given, $IS_DIRECTORY) if $path =~ m{/\z};
my @there = facts($path, 0);
if (@there) {
    fail($given, $EXISTS) if $new;
    ($there[0] & $TYPE) == $REGULAR or fail($given, ($there[0] & $TYPE) == $FOLDER ? $IS_DIRECTORY : "type");
    $mode = $there[0] & 07777 if $mode eq "";
    if (!$>) { $owner = $there[1] if $owner eq ""; $group = $there[2] if $group eq "" }
} else { make_parents($path) if $parents }
$draft = beside($path);
sysopen my $file, $draft, $CREATE | $NOFOLLOW, 0600 or do { $draft = ""; fail($given) };
fill($file, $given);
set_access($file, $given, $mode eq "" ? 0644 : $mode, $owner, $group);
close $file or fail($given);
set_time($draft, $time) if $time ne "";
# A link never takes the place of what came there meanwhile.
if ($new) { link $draft, $path or fail($given) } else { rename $draft, $path or fail($given); $draft = "" }
put("I", join "\0", $given, facts($path, 0));
finish();
