# Gives a guest's connection over to the worker, and ends. QEMU starts it in the socket directory, with the machine's
# id and the name of the socket of what the guest asks for, for each connection that the guest opens; that is its
# standard input. It says nothing, for that would go to the guest, and waits no longer than a moment: a process that
# waits is one that a guest costs. It loads no module, which would take it longer than all that it does.
# It is given to QEMU as a single line in single quotes, without what follows a hash.
my ( $machine, $service, $sendmsg ) = @ARGV;

my $AF_UNIX = 1;
my $SOCK_DGRAM = 2;
my ( $F_SETFL,    $O_NONBLOCK ) = ( 4, 04000 );
my $EAGAIN = 11;
my ( $SOL_SOCKET, $SCM_RIGHTS ) = ( 1, 1 );

socket my $door, $AF_UNIX, $SOCK_DGRAM, 0 or exit 1;
fcntl $door, $F_SETFL, $O_NONBLOCK or exit 1;
connect $door, pack "S a*", $AF_UNIX, $service or exit 1;

# struct iovec, struct cmsghdr with one descriptor, struct msghdr
my $vector  = pack "P Q", $machine, length $machine;
my $control = pack "Q l l l x4", 20, $SOL_SOCKET, $SCM_RIGHTS, fileno STDIN;
my $message = pack "Q L x4 P Q P Q l x4", 0, 0, $vector, 1, $control, length $control, 0;
for ( 1 .. 10 ) {
    exit 0 if syscall( $sendmsg + 0, fileno $door, $message, 0 ) >= 0;
    exit 1 if $! != $EAGAIN;    # the worker has ended
    select undef, undef, undef, 0.02;
}
exit 1;
