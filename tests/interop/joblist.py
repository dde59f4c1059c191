"""Kinds of jobs that users hand in: each is run on a stock execution point and on ours."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from tests.interop.stockjobs import EXECUTING

MB = 1 << 20


@attrs.frozen
class Kind:
    """``lines``: of the submit file; ``files``: put into the user's directory before, by name; ``made``: names of the
    user's directory that come back, besides stdout and stderr; ``act``: condor_ACT once it executes."""

    name: str
    script: str
    lines: Mapping[str, str | None] = attrs.field(factory=dict)
    files: Mapping[str, bytes] = attrs.field(factory=dict)
    made: tuple[str, ...] = ()
    act: str = ""
    after: int = EXECUTING
    held: bool = False


KINDS: tuple[Kind, ...] = (
    Kind("prints", "echo out; echo err >&2"),
    Kind("exits with a code", "exit 37"),
    Kind("dies of a signal", "kill -USR1 $$; sleep 60"),
    Kind("fails to be found by its shell", "no-such-command 2>/dev/null"),
    Kind("reads its standard input", "wc -c; cat", {"input": "stdin.in"}, {"stdin.in": b"line one\nline two\n"}),
    Kind("has input files", "cat a.in b.in", {"transfer_input_files": "a.in, b.in"}, {"a.in": b"a\n", "b.in": b"b\n"}),
    Kind(
        "has an input directory",
        "find tree | sort; cat tree/deep/x",
        {"transfer_input_files": "tree"},
        {"tree/deep/x": b"deep\n", "tree/y": b""},
    ),
    Kind(
        "has what is in an input directory",
        "ls deep y; cat deep/x",
        {"transfer_input_files": "tree/"},
        {"tree/deep/x": b"deep\n", "tree/y": b""},
    ),
    Kind(
        "lists its output",
        "mkdir -p got/below; echo 1 >got/one; echo 2 >got/below/two; echo 3 >three; echo no >unwanted",
        {"transfer_output_files": "got, three"},
        made=("got/one", "got/below/two", "three", "unwanted"),
    ),
    Kind(
        "lists what is in a directory",
        "mkdir only; echo in >only/inside",
        {"transfer_output_files": "only/"},
        made=("inside", "only/inside"),
    ),
    Kind(
        "has its output renamed",
        "echo new >fresh",
        {"transfer_output_files": "fresh", "transfer_output_remaps": '"fresh=renamed"'},
        made=("fresh", "renamed"),
    ),
    Kind(
        "gets back what is new or changed",
        "echo b >>grows.in; echo new >made; mkdir dir; echo d >dir/d; rm same.in",
        {"transfer_input_files": "same.in, grows.in"},
        {"same.in": b"same\n", "grows.in": b"a\n"},
        ("grows.in", "made", "dir/d", "same.in"),
    ),
    Kind(
        "has empty files", ": >empty.back; wc -c <empty.in", {"transfer_input_files": "empty.in"}, {"empty.in": b""},
        ("empty.back",),
    ),
    Kind(
        "has a large file",
        "cat large.in >large.back",
        {"transfer_input_files": "large.in", "transfer_output_files": "large.back"},
        {"large.in": bytes(range(256)) * (4 * MB // 256)},
        ("large.back",),
    ),
    Kind("has quoted arguments", 'for a in "$@"; do echo "[$a]"; done',
         {"arguments": "\"one 'two three' 'it''s' x=$y\""}),
    Kind("has an environment", "echo $COLOUR/$EMPTY/$SIZE", {"environment": "\"COLOUR='deep blue' EMPTY= SIZE=3\""}),
    Kind("writes both streams to one file", "echo out; echo err >&2; echo out", {"error": "both", "output": "both"},
         made=("both",)),
    Kind("drops its output", "echo out; echo err >&2", {"output": "/dev/null"}),
    Kind("has a program of the machine's", "", {"executable": "/bin/echo", "transfer_executable": "false",
         "arguments": "from the machine"}),
    Kind("has a umask and a place of its own", "umask; touch x; stat -c %a x; stat -c %a .;"
         " test $PWD = $_CONDOR_SCRATCH_DIR"
         " && test $TMPDIR && echo $OMP_NUM_THREADS $BATCH_SYSTEM; ulimit -c; nice"),
    Kind("sends output on success only", "echo part >made; exit 1", {"when_to_transfer_output": "ON_SUCCESS",
         "transfer_output_files": "made"}, made=("made",)),
    Kind("streams its output", "echo streamed; echo error >&2", {"stream_output": "true", "stream_error": "true"}),
    Kind("does not make its output", "true", {"transfer_output_files": "never"}, held=True),
    Kind("has no program", "", {"executable": "/nonexistent/program", "transfer_executable": "false"}, held=True),
    Kind("lost its input", "true", {"transfer_input_files": "vanishes"}, held=True),
    Kind("runs for too long", "sleep 60", {"allowed_execute_duration": "1"}, held=True),
    Kind("is removed", "sleep 300", act="rm"),
    Kind("leaves a process behind", "sleep 300 & echo left"),
    Kind("sends output from deep below", "mkdir -p a/b/c; echo f >a/b/f; echo g >a/b/c/g",
         {"transfer_output_files": "a/b/f, a/b/c"}, made=("f", "c/g", "a/b/f", "b/f")),
    Kind("sends output with its paths", "mkdir -p a/b/c; echo f >a/b/f; echo g >a/b/c/g; echo h >a/h",
         {"transfer_output_files": "a/b/c, a/b/f", "preserve_relative_paths": "true"},
         made=("a/b/f", "a/b/c/g", "a/h", "f", "c/g")),
    Kind("sends what is in a directory with its paths", "mkdir -p a/b; echo f >a/b/f",
         {"transfer_output_files": "a/b/", "preserve_relative_paths": "true"}, made=("a/b/f", "b/f", "f")),
    Kind("leaves a named pipe in its output", "mkdir d; mkfifo d/p; echo x >d/x", {"transfer_output_files": "d"},
         made=("d/p", "d/x")),
    Kind("sends a link to a directory", "mkdir d; echo x >d/x; ln -s d l", {"transfer_output_files": "l"}, held=True),
    Kind("sends links to files", "mkdir d; echo x >x; ln -s ../x d/l; ln -s x l", {"transfer_output_files": "d, l"},
         made=("d/l", "l")),
    Kind("has too much input", "true", {"transfer_input_files": "two.in", "max_transfer_input_mb": "1"},
         {"two.in": bytes(2 * MB)}, held=True),
    Kind("has too much output", "head -c 2097152 /dev/zero >two", {"transfer_output_files": "two",
         "max_transfer_output_mb": "1"}, held=True),
    Kind("is handed in with its paths", "cat sub/dir/x", {"transfer_input_files": "sub/dir/x",
         "preserve_relative_paths": "true"}, {"sub/dir/x": b"path\n"}),
)  # fmt: skip
