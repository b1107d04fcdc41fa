# Makes the guest trust authorities beside those of its image: PEM certificates, from standard input. What its store has
# already is left out. Done again, it does nothing; what update-ca-certificates makes later has them as well.
# One process, as a process costs an emulated machine a tenth of a second. It is sent between single quotes, and has
# none.
use strict;
my $BUNDLE = "/etc/ssl/certs/ca-certificates.crt";
# For programs that bring a store of their own, and take more from a file.
my $ADDED = "/etc/ssl/taskyard.pem";
my ($SOURCES, $LINKS) = ("/usr/local/share/ca-certificates", "/etc/ssl/certs");
my $ENVIRONMENT = "/etc/environment";
my @VARIABLES = (
    "NODE_EXTRA_CA_CERTS=$ADDED",
    "SSL_CERT_FILE=$BUNDLE",
    "REQUESTS_CA_BUNDLE=$BUNDLE",
    "PIP_CERT=$BUNDLE",
);
# A keystore that Java was given when it was installed; a later one is made of the links.
my $KEYSTORE = "/etc/ca-certificates/update.d/jks-keystore";

sub content { my ($path) = @_; open my $file, "<", $path or return ""; local $/; return <$file> // "" }
sub append { my ($path, $text) = @_; open my $file, ">>", $path or die "$path: $!\n"; print $file $text; close $file or die "$path: $!\n" }
sub certificates { return $_[0] =~ /-----BEGIN CERTIFICATE-----\s*([A-Za-z0-9+\/=\s]+?)\s*-----END CERTIFICATE-----/g }
sub bare { my ($text) = @_; $text =~ s/\s+//g; return $text }

my $given = do { local $/; <STDIN> };
my %known = map { bare($_) => 1 } certificates(content($BUNDLE));
my @new = grep { !$known{bare($_)}++ } certificates($given);
mkdir $SOURCES;
my $number = () = glob "$SOURCES/taskyard-*.crt";
for my $certificate (@new) {
    my $text = "-----BEGIN CERTIFICATE-----\n$certificate\n-----END CERTIFICATE-----\n";
    my $name = sprintf "taskyard-%d", ++$number;
    append("$SOURCES/$name.crt", $text);
    symlink "$SOURCES/$name.crt", "$LINKS/$name.pem";
    append($_, $text) for $ADDED, $BUNDLE;
}
my %set = map { $_ => 1 } split /\n/, content($ENVIRONMENT);
append($ENVIRONMENT, join "", map { "$_\n" } grep { !$set{$_} } @VARIABLES) if -e $ADDED;
system "update-ca-certificates >/dev/null" if @new && -e $KEYSTORE;
