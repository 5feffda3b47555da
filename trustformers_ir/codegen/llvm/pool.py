"""The native worker pool, as LLVM text: it travels in the artifact and needs only the C library and pthreads.

    ptr  tfir_pool_create(i64 workers)          starts workers-1 threads; null when memory or threads cannot be had
    void tfir_pool_run(ptr pool, ptr entry, ptr call, ptr scratch, i64 stride)
                                                entry(call, w, workers, barrier, scratch + w*stride) on every worker w; the caller is worker 0
    void tfir_barrier(ptr barrier)              all workers of the pool meet here
    void tfir_pool_destroy(ptr pool)            ends the threads

One call at a time per pool. A pool lives in one process: after fork, make a new one (and forget the old one).

*Starting a run.* The caller writes the call's fields, sets ``remaining`` and raises ``generation`` (release). A worker that sees a new generation
(acquire) therefore sees the fields. When it is done it lowers ``remaining`` (release); the caller leaves at zero (acquire), so it sees
all results, and no worker reads the fields of a later call too early or too late.

*Waiting.* A worker first spins for some tens of microseconds, since token generation calls again at once, then parks on a condition
variable. Parking and starting form a Dekker pair: the worker raises ``sleepers`` and then reads ``generation``; the caller raises
``generation`` and then reads ``sleepers``; both are sequentially consistent, so at least one sees the other, and the mutex closes the gap between
the worker's check and its wait.

*The barrier* is a counter and a phase. Whoever arrives last resets the counter, then raises the phase (release); the others spin on the phase
(acquire), and after a long spin give up their time slice on every turn, so that more workers than cores still get on.

Layout, in bytes (each polled word on a cache line of its own):

    0 workers  8 entry  16 call  24 scratch  32 stride  40 stop     64 generation    128 remaining    192 sleepers
    256 barrier: 256 count, 320 phase, 384 workers     448 mutex     576 condition     704 threads[workers]   … arguments[workers] {pool, w}
"""

from __future__ import annotations

from trustformers_ir.codegen.llvm.target import Target

#: Turns of a spin loop before a worker parks, and before a barrier starts to yield. A turn is one pause: 20 to 60 ns.
PARK_AFTER = 3000
YIELD_AFTER = 2000

SYMBOLS = ("tfir_pool_create", "tfir_pool_run", "tfir_pool_destroy", "tfir_barrier")

DECLARATIONS = (
    "declare i32 @posix_memalign(ptr, i64, i64)",
    "declare void @free(ptr)",
    "declare i32 @pthread_create(ptr, ptr, ptr, ptr)",
    "declare i32 @pthread_join(i64, ptr)",
    "declare i32 @pthread_mutex_init(ptr, ptr)",
    "declare i32 @pthread_mutex_lock(ptr)",
    "declare i32 @pthread_mutex_unlock(ptr)",
    "declare i32 @pthread_cond_init(ptr, ptr)",
    "declare i32 @pthread_cond_wait(ptr, ptr)",
    "declare i32 @pthread_cond_broadcast(ptr)",
    "declare i32 @sched_yield()",
    "declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)",
)

_PAUSES = {
    "x86_64": ("declare void @llvm.x86.sse2.pause()", "call void @llvm.x86.sse2.pause()"),
    "aarch64": ("declare void @llvm.aarch64.hint(i32)", "call void @llvm.aarch64.hint(i32 1)"),
}

_TEXT = """
define internal void @tfir_pause() alwaysinline nounwind {
  PAUSE
  ret void
}

; Waits until the i64 at %word differs from %old; gives the new value. Yields the time slice after a long spin.
define internal i64 @tfir_spin(ptr %word, i64 %old) nounwind {
entry:
  br label %turn
turn:
  %n = phi i64 [ 0, %entry ], [ %n1, %again ]
  %now = load atomic i64, ptr %word acquire, align 8
  %changed = icmp ne i64 %now, %old
  br i1 %changed, label %out, label %wait
wait:
  %long = icmp ugt i64 %n, YIELD_AFTER
  br i1 %long, label %yield, label %pause
yield:
  %y = call i32 @sched_yield()
  br label %again
pause:
  call void @tfir_pause()
  br label %again
again:
  %n1 = add i64 %n, 1
  br label %turn
out:
  ret i64 %now
}

define void @tfir_barrier(ptr %barrier) nounwind {
entry:
  %p.workers = getelementptr i8, ptr %barrier, i64 128
  %workers = load i64, ptr %p.workers, align 8
  %alone = icmp sle i64 %workers, 1
  br i1 %alone, label %out, label %meet
meet:
  %p.phase = getelementptr i8, ptr %barrier, i64 64
  %phase = load atomic i64, ptr %p.phase monotonic, align 8
  %before = atomicrmw add ptr %barrier, i64 1 acq_rel, align 8
  %arrived = add i64 %before, 1
  %last = icmp eq i64 %arrived, %workers
  br i1 %last, label %open, label %wait
open:
  store atomic i64 0, ptr %barrier monotonic, align 8
  %next = add i64 %phase, 1
  store atomic i64 %next, ptr %p.phase release, align 8
  br label %out
wait:
  %w = call i64 @tfir_spin(ptr %p.phase, i64 %phase)
  br label %out
out:
  ret void
}

define internal ptr @tfir_worker(ptr %argument) nounwind {
entry:
  %pool = load ptr, ptr %argument, align 8
  %p.me = getelementptr i8, ptr %argument, i64 8
  %me = load i64, ptr %p.me, align 8
  %workers = load i64, ptr %pool, align 8
  %p.generation = getelementptr i8, ptr %pool, i64 64
  %p.remaining = getelementptr i8, ptr %pool, i64 128
  %p.sleepers = getelementptr i8, ptr %pool, i64 192
  %barrier = getelementptr i8, ptr %pool, i64 256
  %mutex = getelementptr i8, ptr %pool, i64 448
  %condition = getelementptr i8, ptr %pool, i64 576
  %p.entry = getelementptr i8, ptr %pool, i64 8
  %p.call = getelementptr i8, ptr %pool, i64 16
  %p.scratch = getelementptr i8, ptr %pool, i64 24
  %p.stride = getelementptr i8, ptr %pool, i64 32
  %p.stop = getelementptr i8, ptr %pool, i64 40
  br label %idle
idle:
  %seen = phi i64 [ 0, %entry ], [ %new, %work ]
  br label %spin
spin:
  %n = phi i64 [ 0, %idle ], [ %n1, %pause ]
  %g = load atomic i64, ptr %p.generation acquire, align 8
  %changed = icmp ne i64 %g, %seen
  br i1 %changed, label %wake, label %more
more:
  %n1 = add i64 %n, 1
  %tired = icmp ugt i64 %n1, PARK_AFTER
  br i1 %tired, label %park, label %pause
pause:
  call void @tfir_pause()
  br label %spin
park:
  %l = call i32 @pthread_mutex_lock(ptr %mutex)
  %s0 = atomicrmw add ptr %p.sleepers, i64 1 seq_cst, align 8
  br label %check
check:
  %g2 = load atomic i64, ptr %p.generation seq_cst, align 8
  %changed2 = icmp ne i64 %g2, %seen
  br i1 %changed2, label %unpark, label %sleep
sleep:
  %c = call i32 @pthread_cond_wait(ptr %condition, ptr %mutex)
  br label %check
unpark:
  %s1 = atomicrmw sub ptr %p.sleepers, i64 1 seq_cst, align 8
  %u = call i32 @pthread_mutex_unlock(ptr %mutex)
  br label %wake
wake:
  %new = phi i64 [ %g, %spin ], [ %g2, %unpark ]
  %stop = load i64, ptr %p.stop, align 8
  %ending = icmp ne i64 %stop, 0
  br i1 %ending, label %out, label %work
work:
  %entry.f = load ptr, ptr %p.entry, align 8
  %call = load ptr, ptr %p.call, align 8
  %scratch = load ptr, ptr %p.scratch, align 8
  %stride = load i64, ptr %p.stride, align 8
  %offset = mul i64 %stride, %me
  %mine = getelementptr i8, ptr %scratch, i64 %offset
  call void %entry.f(ptr %call, i64 %me, i64 %workers, ptr %barrier, ptr %mine)
  %r = atomicrmw sub ptr %p.remaining, i64 1 release, align 8
  br label %idle
out:
  ret ptr null
}

; Raises the generation and wakes whoever is parked.
define internal void @tfir_start(ptr %pool) nounwind {
entry:
  %p.generation = getelementptr i8, ptr %pool, i64 64
  %p.sleepers = getelementptr i8, ptr %pool, i64 192
  %g = atomicrmw add ptr %p.generation, i64 1 seq_cst, align 8
  %s = load atomic i64, ptr %p.sleepers seq_cst, align 8
  %parked = icmp ne i64 %s, 0
  br i1 %parked, label %wake, label %out
wake:
  %mutex = getelementptr i8, ptr %pool, i64 448
  %condition = getelementptr i8, ptr %pool, i64 576
  %l = call i32 @pthread_mutex_lock(ptr %mutex)
  %b = call i32 @pthread_cond_broadcast(ptr %condition)
  %u = call i32 @pthread_mutex_unlock(ptr %mutex)
  br label %out
out:
  ret void
}

define ptr @tfir_pool_create(i64 %workers) nounwind {
entry:
  %slot = alloca ptr, align 8
  %room = mul i64 %workers, 24
  %bytes = add i64 %room, 704
  %e = call i32 @posix_memalign(ptr %slot, i64 64, i64 %bytes)
  %ok = icmp eq i32 %e, 0
  br i1 %ok, label %fill, label %fail
fill:
  %pool = load ptr, ptr %slot, align 8
  call void @llvm.memset.p0.i64(ptr align 64 %pool, i8 0, i64 %bytes, i1 false)
  store i64 %workers, ptr %pool, align 8
  %p.workers = getelementptr i8, ptr %pool, i64 384
  store i64 %workers, ptr %p.workers, align 8
  %mutex = getelementptr i8, ptr %pool, i64 448
  %condition = getelementptr i8, ptr %pool, i64 576
  %m = call i32 @pthread_mutex_init(ptr %mutex, ptr null)
  %c = call i32 @pthread_cond_init(ptr %condition, ptr null)
  %threads = getelementptr i8, ptr %pool, i64 704
  %after = mul i64 %workers, 8
  %arguments = getelementptr i8, ptr %threads, i64 %after
  %some = icmp sgt i64 %workers, 1
  br i1 %some, label %thread, label %done
thread:
  %w = phi i64 [ 1, %fill ], [ %w1, %started ]
  %t = getelementptr i64, ptr %threads, i64 %w
  %at = mul i64 %w, 16
  %argument = getelementptr i8, ptr %arguments, i64 %at
  store ptr %pool, ptr %argument, align 8
  %p.me = getelementptr i8, ptr %argument, i64 8
  store i64 %w, ptr %p.me, align 8
  %e2 = call i32 @pthread_create(ptr %t, ptr null, ptr @tfir_worker, ptr %argument)
  %ok2 = icmp eq i32 %e2, 0
  br i1 %ok2, label %started, label %undo
started:
  %w1 = add i64 %w, 1
  %again = icmp slt i64 %w1, %workers
  br i1 %again, label %thread, label %done
undo:
  call void @tfir_end(ptr %pool, i64 %w)
  br label %fail
done:
  ret ptr %pool
fail:
  ret ptr null
}

define void @tfir_pool_run(ptr %pool, ptr %entry.f, ptr %call, ptr %scratch, i64 %stride) nounwind {
entry:
  %workers = load i64, ptr %pool, align 8
  %barrier = getelementptr i8, ptr %pool, i64 256
  %alone = icmp sle i64 %workers, 1
  br i1 %alone, label %single, label %many
single:
  call void %entry.f(ptr %call, i64 0, i64 1, ptr %barrier, ptr %scratch)
  ret void
many:
  %p.entry = getelementptr i8, ptr %pool, i64 8
  %p.call = getelementptr i8, ptr %pool, i64 16
  %p.scratch = getelementptr i8, ptr %pool, i64 24
  %p.stride = getelementptr i8, ptr %pool, i64 32
  %p.remaining = getelementptr i8, ptr %pool, i64 128
  store ptr %entry.f, ptr %p.entry, align 8
  store ptr %call, ptr %p.call, align 8
  store ptr %scratch, ptr %p.scratch, align 8
  store i64 %stride, ptr %p.stride, align 8
  %helpers = sub i64 %workers, 1
  store atomic i64 %helpers, ptr %p.remaining monotonic, align 8
  call void @tfir_start(ptr %pool)
  call void %entry.f(ptr %call, i64 0, i64 %workers, ptr %barrier, ptr %scratch)
  br label %wait
wait:
  %left = load atomic i64, ptr %p.remaining acquire, align 8
  %finished = icmp eq i64 %left, 0
  br i1 %finished, label %out, label %turn
turn:
  %x = call i64 @tfir_spin(ptr %p.remaining, i64 %left)
  br label %wait
out:
  ret void
}

; Ends the threads 1 … %count-1 and frees the pool.
define internal void @tfir_end(ptr %pool, i64 %count) nounwind {
entry:
  %p.stop = getelementptr i8, ptr %pool, i64 40
  store i64 1, ptr %p.stop, align 8
  call void @tfir_start(ptr %pool)
  %threads = getelementptr i8, ptr %pool, i64 704
  %some = icmp sgt i64 %count, 1
  br i1 %some, label %join, label %out
join:
  %w = phi i64 [ 1, %entry ], [ %w1, %join ]
  %p.t = getelementptr i64, ptr %threads, i64 %w
  %t = load i64, ptr %p.t, align 8
  %j = call i32 @pthread_join(i64 %t, ptr null)
  %w1 = add i64 %w, 1
  %more = icmp slt i64 %w1, %count
  br i1 %more, label %join, label %out
out:
  call void @free(ptr %pool)
  ret void
}

define void @tfir_pool_destroy(ptr %pool) nounwind {
  %workers = load i64, ptr %pool, align 8
  call void @tfir_end(ptr %pool, i64 %workers)
  ret void
}
"""


def pool_text(target: Target) -> str:
    """Definitions of the pool for a target; ``pool_declarations`` go with it."""
    _, pause = _PAUSES.get(target.triple.split("-")[0], ("", ""))
    return _TEXT.replace("PAUSE", pause).replace("YIELD_AFTER", str(YIELD_AFTER)).replace("PARK_AFTER", str(PARK_AFTER)).strip()


def pool_declarations(target: Target) -> tuple[str, ...]:
    """External functions that the pool calls."""
    declaration, _ = _PAUSES.get(target.triple.split("-")[0], ("", ""))
    return (*DECLARATIONS, declaration) if declaration else DECLARATIONS
