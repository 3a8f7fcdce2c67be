"""Ctrl-C and SIGTERM (a scheduler's time limit, `kill PID`): one message that says how to resume, never a traceback.

Imports nothing heavy: the handlers stand before torch is imported.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType

SIGNALS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
AGAIN = "start the same command again"


class Stopped(KeyboardInterrupt):
    """This process was told to stop.

    A KeyboardInterrupt, which Lightning, joblib and data-loader workers know how to end on; not an Exception, which
    a sweep would record as the failure of a setting.
    """


_active = False  # within `stoppable`
_received: signal.Signals | None = None  # the first signal that came
_advice: str | None = AGAIN  # None: it has been said


@contextmanager
def stoppable(advice: str = AGAIN) -> Iterator[None]:
    """End the process with a message and the exit code of shells, 128 + signal, when it is told to stop.

    A second signal ends it at once; one that is ignored (Ctrl-C for what a shell starts in the background) stays so.
    `advice` says how to resume, as long as `advise` says nothing better.
    """
    global _active, _received
    before, hook = {signum: signal.getsignal(signum) for signum in SIGNALS}, sys.unraisablehook
    _active, _received, sys.unraisablehook = True, None, partial(_unraisable, hook)
    advise(advice)
    handle()
    try:
        yield
    except BaseException:  # whatever goes wrong once the process was told to stop is a consequence
        if _received is None:
            raise
        _say(_received)
        if hasattr(signal, "SIGCHLD"):  # torch's handler raises when data-loader workers are ended at exit
            _set({signal.SIGCHLD: signal.SIG_DFL})
        sys.exit(128 + _received)
    finally:
        _set(before)
        _active = False
        if _received is None:  # else what is being destroyed may still complain
            sys.unraisablehook = hook


def advise(advice: str) -> None:
    """What to say from now on when the process is told to stop."""
    global _advice
    _advice = advice


def handle() -> None:
    """Let signals raise `Stopped`, also after a library has put handlers of its own in their place."""
    _set(dict.fromkeys(SIGNALS, _raise))


def active() -> bool:
    """Whether this process is within `stoppable`; one that was forked from it is not."""
    return _active


def received() -> bool:
    """Whether this process was told to stop."""
    return _received is not None


def while_importing() -> None:
    """End without a traceback until `stoppable` takes over: `python -m coop.NAME` imports for seconds."""
    own = sys.orig_argv[: 1 - len(sys.argv)] if len(sys.argv) > 1 else sys.orig_argv  # Python's: -m coop.NAME
    if sys.argv[:1] == ["-m"] and own[-1].startswith("coop."):
        _set(dict.fromkeys(SIGNALS, _leave))


@contextmanager
def importing() -> Iterator[None]:
    """Within `stoppable`: end at once as long as modules are imported, which may catch an exception out of place."""
    _set(dict.fromkeys(SIGNALS, _leave))
    try:
        yield
    finally:
        handle()


def _set(handlers: dict[signal.Signals, Callable | int | None]) -> None:
    if threading.current_thread() is not threading.main_thread():  # Python takes handlers from no other
        return
    for signum, handler in handlers.items():
        if signal.getsignal(signum) is not signal.SIG_IGN and handler is not None:
            signal.signal(signum, handler)


def _raise(signum: int, _: FrameType | None) -> None:
    global _received
    if _received is not None:
        _leave(signum, None)
    _received = signal.Signals(signum)
    raise Stopped


def _unraisable(hook: Callable, unraisable: "sys.UnraisableHookArgs") -> None:
    """Where Python lets no exception through (destructors, what is called after a fork), raise it a moment later."""
    global _received
    if isinstance(unraisable.exc_value, Stopped):
        while _received is not None:  # on a busy machine it comes again before the timer has started, and here
            signum, _received = _received, None
            with suppress(Stopped):
                threading.Timer(0.01, os.kill, (os.getpid(), signum)).start()
    elif _received is None:
        hook(unraisable)


def _leave(signum: int, _: FrameType | None) -> None:
    _say(signal.Signals(signum))
    os._exit(128 + signum)


def _say(signum: signal.Signals) -> None:
    """Once, by the first of a distributed run's processes. Not with `print`, which a signal may have interrupted."""
    global _advice
    if os.environ.get("LOCAL_RANK", "0") == "0" and _advice:
        os.write(2, f"\nstopped by {SIGNALS[signum]}; {_advice}\n".encode(errors="surrogateescape"))
    _advice = None


def _in_a_fork() -> None:
    """A data-loader worker ends with its process, and has nothing to say."""
    global _active
    _active = False
    for signum, handler in ((signal.SIGINT, signal.SIG_IGN), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(signum) in (_raise, _leave):
            signal.signal(signum, handler)
    _unblock()


if hasattr(os, "register_at_fork"):
    # Signals wait: Python forgets those that reach the child before `_in_a_fork`, and who sent one waits forever.
    _block = partial(signal.pthread_sigmask, signal.SIG_BLOCK, SIGNALS)
    _unblock = partial(signal.pthread_sigmask, signal.SIG_UNBLOCK, SIGNALS)
    os.register_at_fork(before=_block, after_in_parent=_unblock, after_in_child=_in_a_fork)
