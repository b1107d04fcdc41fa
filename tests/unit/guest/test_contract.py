"""Guest and host hold to one contract: what either writes down is in it, and what it says is written down."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from activities.agent.session import AgentSession, Launch
from guest import contract, programs
from guest.programs import IMAGE_DIR, perl_command, process_program, shell_command
from machines.identity import clock_message, identity_message, make_keys
from tests.stand_ins.local_guest import LocalGuest

ROOT = Path(__file__).parents[3]
GUEST = ROOT / "guest"
# What of the room is Python's own.
_PYTHON = (".py", ".pyc", "py.typed")
FILES = {
    path: path.read_text() for path in sorted(GUEST.rglob("*")) if path.is_file() and not path.name.endswith(_PYTHON)
}
VALUES = {name: value for name, value in vars(contract).items() if name.isupper() and isinstance(value, str | int)}
PLACES = {value for value in VALUES.values() if isinstance(value, str) and value.startswith("/")}
# What the guest's own programs say to one another: nobody else looks there.
OWN_PLACES = re.compile(
    r"/(?:etc|usr|proc|sys|dev|bin|sbin|boot|lib)(?:/|$)|/root/\.ssh$|/setup$|/$"
    r"|/run/(?:sshd|hostname|hosts|own-machine-id|own-boot-id)(?:/|$)|/var/run/nscd/|/var/lib/(?:systemd|dbus)/"
)


def written(pattern: str) -> set[str]:
    return {found for text in FILES.values() for found in re.findall(pattern, text, re.MULTILINE)}


def test_the_guest_has_files_of_each_kind() -> None:
    assert {path.relative_to(GUEST).parts[0] for path in FILES} == {
        "agent",
        "image",
        "process",
        "commands",
        "workspace",
    }
    assert {path.name for path in FILES if path.parent.name == "process"} == set(contract.PROCESS_PROGRAMS)


def test_what_the_contract_says_of_guest_files_is_in_them() -> None:
    assert [text for text in contract.IN_GUEST_FILES if not any(text in content for content in FILES.values())] == []


def test_every_word_of_the_contract_is_said_to_guest_files_or_used_by_the_host() -> None:
    said = "\0".join(contract.IN_GUEST_FILES)
    used = {
        name.id if isinstance(name, ast.Name) else ""
        for path in python_files("activities", "machines", "worker", "benchmarks")
        for name in ast.walk(ast.parse(path.read_text()))
    }
    names = {name for name, value in VALUES.items() if str(value).rpartition("/")[2] not in said}
    assert names - used == set()


def test_addresses_that_guest_files_have_are_the_contracts() -> None:
    addresses = {
        *(contract.ROUTER_ADDRESS, contract.GUEST_ADDRESS, contract.MODEL_GATEWAY_ADDRESS, contract.EGRESS_ADDRESS),
        *(contract.NETWORK_ADDRESS, contract.NAMES_NETWORK),
    }
    found = written(r"\b(\d+\.\d+\.\d+\.\d+)\b")
    assert found - {"127.0.0.1", "127.0.0.0", "0.0.0.0"} <= addresses
    assert written(r"\d/(\d+) dev ") == {str(contract.NETWORK_BITS)}


def test_places_that_guest_files_have_are_the_contracts_or_their_own() -> None:
    found = {place.rstrip(".") for place in written(r"(?:^|[\s'=(:>]|(?<!\w)\")(/[a-z]\w{2}[\w./-]*)")}
    shared = {place for place in found if not OWN_PLACES.match(place)}
    assert {contract.WORKSPACE} <= shared <= PLACES
    # The host says where the group of a unit is.
    groups = {place for place in found if place.startswith("/sys/fs/cgroup/")}
    assert groups <= {contract.UNIT_CGROUPS, contract.ATTACHED_GROUPS}


def test_files_of_a_process_are_the_contracts() -> None:
    # The record of earlier versions is beside them.
    files = {*contract.PROCESS_FILES, *contract.PROCESS_MARKS, contract.EXIT_RECORD}
    assert written(r"\$dir/([\w-]+)") == files
    volatile = {contract.EXIT_RECORD, contract.SPEC_DIGEST, contract.STOPPED, contract.START_LOCK}
    assert written(r"\$volatile/([\w.-]+)") == volatile
    assert written(r'"([\w-]*environment)"') == {contract.ENVIRONMENT.rpartition("/")[2], contract.PROCESS_ENVIRONMENT}


def test_ids_names_and_codes_that_guest_files_have_are_the_contracts() -> None:
    assert written(r"--uid (\d+)") == {str(contract.AGENT_UID)}
    assert written(r"\"(\d+:\d+)\"") == {f"{contract.AGENT_UID}:{contract.AGENT_UID}"}
    assert written(r"'(org\.taskyard\.[\w.]+)'") == {contract.IDENTITY_PORT}
    assert written(r"\b(taskyard-[a-z]+)\.service") == {
        "taskyard-identity", "taskyard-network", "taskyard-redirect",
    }  # fmt: skip
    codes = {contract.INBOX_CLOSED, contract.INBOX_GAP, contract.TOO_MANY_PROCESSES, contract.NO_SUCH_USER}
    codes |= {contract.NO_PROCESS, 126}
    assert {int(code) for code in written(r"\bexit (\d+)") if int(code) > 1} == codes
    started = f"{contract.STARTED_AS_ANOTHER} : {contract.STARTED_BEFORE}"
    assert written(r"\? (\d : \d)\)") == {started, "127 : 126"} - {"127 : 126"}
    assert written(r"time, (\d+)") == {str(contract.KILLED)}
    assert written(r"/block/(vd\w)\b") == {contract.ROOT_DISK}
    assert written(r"serial .*=~ /\^(\w+)\$/") == {contract.WORKSPACE_SERIAL}
    assert written(r"\b(?:dev|net|set) (e\w+|wlan\w*)\b") == {contract.INTERFACE}


def test_both_sides_of_the_identity_protocol_have_the_same_fields(tmp_path: Path) -> None:
    service = (IMAGE_DIR / "rootfs/usr/local/lib/taskyard/identity").read_text()
    steps = service[service.index("my @STEPS = (") : service.index("\n);\n")]
    taken = re.findall(r"^ {4}\['?([\w-]+)'? => ", steps, re.MULTILINE)
    assert len(taken) == steps.count("\n    [")
    assert set(taken) == set(contract.IDENTITY_FIELDS)

    make_keys(tmp_path, "vm-0123456789abcdef")
    assert fields_of(identity_message(tmp_path, "vm-0123456789abcdef", 2**30)) == contract.IDENTITY_FIELDS
    assert fields_of(clock_message()) == contract.IDENTITY_FIELDS[:2]


def fields_of(message: bytes) -> tuple[str, ...]:
    whole = message.decode()
    assert whole.index(contract.MESSAGE_END) == len(whole) - 1
    return tuple(part.partition("=")[0] for part in whole[:-1].split(contract.FIELD_SEPARATOR))


def test_a_session_is_laid_where_the_contract_says(tmp_path: Path) -> None:
    guest = LocalGuest(tmp_path)
    try:
        launch = Launch(guest.program("cat"), str(tmp_path), "hello", {"A": "b"})
        # An agent that was stopped first is not started, so that it makes no files of its own.
        AgentSession(guest).stop(force=False)
        AgentSession(guest).start(launch)
        laid = {f"/{path.relative_to(tmp_path)}" for path in tmp_path.rglob("*") if path.is_file()}
    finally:
        guest.close()
    session = {f"{contract.SESSION_DIR}/{name}" for name in contract.PROCESS_FILES}
    session |= {f"{contract.SESSION_DIR}/bin/{name}" for name in contract.PROCESS_PROGRAMS}
    names = (contract.PROCESS_ENVIRONMENT, contract.EXIT_RECORD, contract.SPEC_DIGEST)
    memory = {f"{contract.VOLATILE_DIR}/{name}" for name in (*names, contract.STOPPED, contract.START_LOCK)}
    below = (contract.SESSION_DIR, contract.VOLATILE_DIR)
    assert {place for place in laid if place.startswith(below)} == session | memory


def test_no_program_of_the_host_writes_down_what_is_in_the_contract() -> None:
    ours = re.compile(
        r"10\.0\.2\.\d|/workspace\b|/run/taskyard|/var/lib/taskyard/|/sys/fs/cgroup/system|org\.taskyard\.|taskyard-agent"
    )
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in python_files("activities", "machines", "worker")
        for line, text in texts(ast.parse(path.read_text()))
        if ours.search(text)
    ]
    assert found == []


def python_files(*rooms: str) -> Iterator[Path]:
    for room in rooms:
        yield from sorted((ROOT / room).rglob("*.py"))


def texts(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every text of a module but its documentation, with the line that it is on."""
    described = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    spoken = {id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, described) and documented(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in spoken:
            yield node.lineno, node.value


def documented(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return bool(node.body) and isinstance(node.body[0], ast.Expr)


@pytest.mark.parametrize("path", sorted(path for path in FILES if path.parent.name == "commands"), ids=lambda p: p.name)
def test_a_command_is_sent_without_its_comments(path: Path) -> None:
    command = perl_command(path.stem) if path.suffix == ".pl" else shell_command(path.stem)
    assert FILES[path].startswith("#")
    assert not re.search(r"^#|\\$", command, re.MULTILINE)
    assert path.suffix != ".pl" or command.count("'") == 2


def test_a_line_that_is_continued_is_sent_as_one() -> None:
    assert shell_command("tell-figures").count("\n") == 0
    assert process_program("close") == (GUEST / "process" / "close").read_bytes()
    assert programs.IMAGE_DIR == GUEST / "image"
