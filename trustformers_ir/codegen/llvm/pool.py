"""The native worker pool, as LLVM text: it travels in the artifact and needs only the C library and pthreads.

    ptr  tfir_pool_create(i64 workers)          starts workers-1 threads; null when memory or threads cannot be had
    void tfir_pool_run(ptr pool, ptr entry, ptr call, ptr scratch, i64 stride)
                                                runs an entry on all workers; the caller is worker 0
    void tfir_pool_patience(ptr pool, i64 ns)   how long a worker without work polls before it parks
    void tfir_pool_destroy(ptr pool)            ends the threads
    i64  tfir_pool_next(ptr pool, i64 worker, i64 claim, i64 intervals)
                                                called by an entry: ``claim`` is done; the next one, or -1 when the run is over

One run at a time per pool. A pool lives in one process: after fork, make a new one (and forget the old one).

*Shares and claims.* A run is a row of *intervals* with a barrier between each and the next, and each interval has as many *shares* as the pool has
workers: the static cut of its kernels. What a share computes depends on its number alone, never on who executes it, so the bits do not either.
Whoever is there claims shares, first the one of its own number, so that it finds its data in its own cache, then any that is left; a run
never waits for a worker that has not come. That is what makes the first call after a pause fast: a parked thread may take milliseconds to wake
(on a virtual machine its CPU has been halted), and by then the caller has done a small call alone. It is also why more workers than CPUs
do no harm: one that the system has put aside between two shares holds up nobody.

``entry(call, worker, workers, pool, scratch + worker*stride, claim)`` executes the claim that it is given and asks ``tfir_pool_next`` for more until
there is none. A claim is ``interval << 16 | share``.

*Epochs.* Intervals are numbered through the life of a pool; the number of the current one, its *epoch*, is ``phase >> 2``. ``claimed[s]`` is the
epoch for which share s was claimed last: to claim it is to raise that word to the current epoch by compare and exchange. Epochs only
grow, so a thread that slept since it read the phase cannot claim anything: the words have passed its epoch. Done shares are counted in ``done``; who
completes the count resets it and raises the phase. Bit 0 of the phase says that no run is open, bit 1 that the threads shall end.

*What may be read when.* The fields of a run (entry, call, scratch, stride, base) and all that ``call`` points to change only between runs. A
run cannot end while somebody holds a claim, so they are read only by who holds one; a worker that comes too late finds nothing to claim and
touches nothing. Counting a share (acquire and release), raising the phase (release) and reading it (acquire) order what an interval wrote before
what the next ones read. In ``tfir_pool_next`` a worker claims only below the epoch at which its own run ends; claims of a later run are
made in ``tfir_worker``, where the fields are read anew.

*Waiting.* A worker without a run polls the phase for a while, since token generation calls again at once (it offers its time slice to others
now and then), and then parks on a condition variable. Parking and starting form a Dekker pair: the worker raises ``sleepers`` and then reads
the phase; the caller opens the phase and then reads ``sleepers``; both are sequentially consistent, so at least one sees the other, and the mutex
closes the gap between the worker's check and its wait. A worker without a share in an open run polls until the phase changes, and gives up
its time slice on every turn when that takes long.

Layout, in bytes (each polled word on a cache line of its own):

    0 workers  8 entry  16 call  24 scratch  32 stride  40 base  48 patience     64 phase     128 done     192 sleepers     256 mutex
    384 condition     512 claimed[workers], 64 bytes each     then threads[workers]     then arguments[workers] {pool, w}
"""

from __future__ import annotations

from trustformers_ir.codegen.llvm.target import Target

#: Turns of a spin loop (one pause each: 20 to 60 ns) before a worker that waits for others in a run starts to yield.
YIELD_AFTER = 2000
#: Turns between two looks at the clock of a worker without a run.
LOOK_EVERY = 32
#: Nanoseconds that a worker without a run polls before it parks, until the runtime says otherwise.
PATIENCE = 100_000

#: A claim is ``interval << SHARE_BITS | share``.
SHARE_BITS = 16
SHARE_MASK = (1 << SHARE_BITS) - 1

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
    "declare i32 @clock_gettime(i32, ptr)",
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

; Waits until the i64 at %word differs from %old. Yields the time slice after a long spin.
define internal void @tfir_spin(ptr %word, i64 %old) nounwind {
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
  ret void
}

define internal i64 @tfir_nanoseconds() nounwind {
entry:
  %time = alloca [2 x i64], align 8
  %e = call i32 @clock_gettime(i32 CLOCK_MONOTONIC, ptr %time)
  %s = load i64, ptr %time, align 8
  %p.ns = getelementptr i8, ptr %time, i64 8
  %ns = load i64, ptr %p.ns, align 8
  %whole = mul i64 %s, 1000000000
  %sum = add i64 %whole, %ns
  ret i64 %sum
}

; A claim of worker %me below the epoch %end, or -1 when no run is open there. Waits while a run is open and all shares are claimed.
define internal i64 @tfir_claim(ptr %pool, i64 %me, i64 %end) nounwind {
entry:
  %workers = load i64, ptr %pool, align 8
  %p.base = getelementptr i8, ptr %pool, i64 40
  %p.phase = getelementptr i8, ptr %pool, i64 64
  %claimed = getelementptr i8, ptr %pool, i64 512
  br label %look
look:
  %phase = load atomic i64, ptr %p.phase acquire, align 8
  %epoch = lshr i64 %phase, 2
  %flags = and i64 %phase, 3
  %closed = icmp ne i64 %flags, 0
  %beyond = icmp uge i64 %epoch, %end
  %over = or i1 %closed, %beyond
  br i1 %over, label %none, label %try
try:
  %n = phi i64 [ 0, %look ], [ %n1, %next ]
  %s = phi i64 [ %me, %look ], [ %s2, %next ]
  %at = shl i64 %s, 6
  %word = getelementptr i8, ptr %claimed, i64 %at
  %old = load atomic i64, ptr %word monotonic, align 8
  %free = icmp ult i64 %old, %epoch
  br i1 %free, label %take, label %next
take:
  %pair = cmpxchg ptr %word, i64 %old, i64 %epoch acq_rel monotonic, align 8
  %mine = extractvalue { i64, i1 } %pair, 1
  br i1 %mine, label %got, label %next
next:
  %n1 = add i64 %n, 1
  %s1 = add i64 %s, 1
  %wrap = icmp eq i64 %s1, %workers
  %s2 = select i1 %wrap, i64 0, i64 %s1
  %more = icmp ult i64 %n1, %workers
  br i1 %more, label %try, label %wait
wait:
  call void @tfir_spin(ptr %p.phase, i64 %phase)
  br label %look
got:
  %base = load i64, ptr %p.base, align 8
  %interval = sub i64 %epoch, %base
  %high = shl i64 %interval, 16
  %claim = or i64 %high, %s
  ret i64 %claim
none:
  ret i64 -1
}

define i64 @tfir_pool_next(ptr %pool, i64 %me, i64 %claim, i64 %intervals) nounwind {
entry:
  %workers = load i64, ptr %pool, align 8
  %interval = lshr i64 %claim, 16
  %following = add i64 %interval, 1
  %more = icmp ult i64 %following, %intervals
  %alone = icmp sle i64 %workers, 1
  br i1 %alone, label %single, label %many
single:
  %simple = shl i64 %following, 16
  %given = select i1 %more, i64 %simple, i64 -1
  ret i64 %given
many:
  %p.phase = getelementptr i8, ptr %pool, i64 64
  %p.done = getelementptr i8, ptr %pool, i64 128
  %phase = load atomic i64, ptr %p.phase monotonic, align 8
  %epoch = lshr i64 %phase, 2
  %base = sub i64 %epoch, %interval
  %end = add i64 %base, %intervals
  %before = atomicrmw add ptr %p.done, i64 1 acq_rel, align 8
  %count = add i64 %before, 1
  %last = icmp eq i64 %count, %workers
  br i1 %last, label %raise, label %claims
raise:
  store atomic i64 0, ptr %p.done monotonic, align 8
  %raised = add i64 %phase, 4
  %closed = or i64 %raised, 1
  %value = select i1 %more, i64 %raised, i64 %closed
  store atomic i64 %value, ptr %p.phase release, align 8
  br label %claims
claims:
  %c = call i64 @tfir_claim(ptr %pool, i64 %me, i64 %end)
  ret i64 %c
}

; Executes a claim, and all that the entry claims after it.
define internal void @tfir_execute(ptr %pool, i64 %me, i64 %claim) nounwind {
  %workers = load i64, ptr %pool, align 8
  %p.entry = getelementptr i8, ptr %pool, i64 8
  %p.call = getelementptr i8, ptr %pool, i64 16
  %p.scratch = getelementptr i8, ptr %pool, i64 24
  %p.stride = getelementptr i8, ptr %pool, i64 32
  %entry.f = load ptr, ptr %p.entry, align 8
  %call = load ptr, ptr %p.call, align 8
  %scratch = load ptr, ptr %p.scratch, align 8
  %stride = load i64, ptr %p.stride, align 8
  %offset = mul i64 %stride, %me
  %mine = getelementptr i8, ptr %scratch, i64 %offset
  call void %entry.f(ptr %call, i64 %me, i64 %workers, ptr %pool, ptr %mine, i64 %claim)
  ret void
}

define internal ptr @tfir_worker(ptr %argument) nounwind {
entry:
  %pool = load ptr, ptr %argument, align 8
  %p.me = getelementptr i8, ptr %argument, i64 8
  %me = load i64, ptr %p.me, align 8
  %p.patience = getelementptr i8, ptr %pool, i64 48
  %p.phase = getelementptr i8, ptr %pool, i64 64
  %p.sleepers = getelementptr i8, ptr %pool, i64 192
  %mutex = getelementptr i8, ptr %pool, i64 256
  %condition = getelementptr i8, ptr %pool, i64 384
  br label %look
look:
  %claim = call i64 @tfir_claim(ptr %pool, i64 %me, i64 -1)
  %some = icmp sge i64 %claim, 0
  br i1 %some, label %work, label %idle
work:
  call void @tfir_execute(ptr %pool, i64 %me, i64 %claim)
  br label %look
idle:
  %since = call i64 @tfir_nanoseconds()
  br label %poll
poll:
  %n = phi i64 [ 0, %idle ], [ %n1, %pause ], [ 0, %stay ]
  %phase = load atomic i64, ptr %p.phase acquire, align 8
  %flags = and i64 %phase, 3
  %closed = icmp eq i64 %flags, 1
  br i1 %closed, label %still, label %changed
changed:
  %stop = icmp uge i64 %flags, 2
  br i1 %stop, label %out, label %look
still:
  %n1 = add i64 %n, 1
  %often = icmp ult i64 %n1, LOOK_EVERY
  br i1 %often, label %pause, label %time
pause:
  call void @tfir_pause()
  br label %poll
time:
  %now = call i64 @tfir_nanoseconds()
  %waited = sub i64 %now, %since
  %patience = load atomic i64, ptr %p.patience monotonic, align 8
  %tired = icmp uge i64 %waited, %patience
  br i1 %tired, label %park, label %stay
stay:
  %y = call i32 @sched_yield()
  br label %poll
park:
  %l = call i32 @pthread_mutex_lock(ptr %mutex)
  %s0 = atomicrmw add ptr %p.sleepers, i64 1 seq_cst, align 8
  %again = load atomic i64, ptr %p.phase seq_cst, align 8
  %flags2 = and i64 %again, 3
  %closed2 = icmp eq i64 %flags2, 1
  br i1 %closed2, label %sleep, label %unpark
sleep:
  %c = call i32 @pthread_cond_wait(ptr %condition, ptr %mutex)
  br label %unpark
unpark:
  %s1 = atomicrmw sub ptr %p.sleepers, i64 1 seq_cst, align 8
  %u = call i32 @pthread_mutex_unlock(ptr %mutex)
  br label %look
out:
  ret ptr null
}

; Gives the phase its flags and wakes whoever is parked.
define internal void @tfir_start(ptr %pool, i64 %flags) nounwind {
entry:
  %p.phase = getelementptr i8, ptr %pool, i64 64
  %p.sleepers = getelementptr i8, ptr %pool, i64 192
  %phase = load atomic i64, ptr %p.phase monotonic, align 8
  %epoch = and i64 %phase, -4
  %new = or i64 %epoch, %flags
  store atomic i64 %new, ptr %p.phase seq_cst, align 8
  %s = load atomic i64, ptr %p.sleepers seq_cst, align 8
  %parked = icmp ne i64 %s, 0
  br i1 %parked, label %wake, label %out
wake:
  %mutex = getelementptr i8, ptr %pool, i64 256
  %condition = getelementptr i8, ptr %pool, i64 384
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
  %room = mul i64 %workers, 88
  %bytes = add i64 %room, 512
  %e = call i32 @posix_memalign(ptr %slot, i64 64, i64 %bytes)
  %ok = icmp eq i32 %e, 0
  br i1 %ok, label %fill, label %fail
fill:
  %pool = load ptr, ptr %slot, align 8
  call void @llvm.memset.p0.i64(ptr align 64 %pool, i8 0, i64 %bytes, i1 false)
  store i64 %workers, ptr %pool, align 8
  %p.patience = getelementptr i8, ptr %pool, i64 48
  store i64 PATIENCE, ptr %p.patience, align 8
  %p.phase = getelementptr i8, ptr %pool, i64 64
  store i64 5, ptr %p.phase, align 8
  %mutex = getelementptr i8, ptr %pool, i64 256
  %condition = getelementptr i8, ptr %pool, i64 384
  %m = call i32 @pthread_mutex_init(ptr %mutex, ptr null)
  %c = call i32 @pthread_cond_init(ptr %condition, ptr null)
  %threads = call ptr @tfir_threads(ptr %pool)
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

define internal ptr @tfir_threads(ptr %pool) nounwind {
  %workers = load i64, ptr %pool, align 8
  %words = shl i64 %workers, 6
  %at = add i64 %words, 512
  %threads = getelementptr i8, ptr %pool, i64 %at
  ret ptr %threads
}

define void @tfir_pool_patience(ptr %pool, i64 %ns) nounwind {
  %p.patience = getelementptr i8, ptr %pool, i64 48
  store atomic i64 %ns, ptr %p.patience monotonic, align 8
  ret void
}

define void @tfir_pool_run(ptr %pool, ptr %entry.f, ptr %call, ptr %scratch, i64 %stride) nounwind {
entry:
  %p.entry = getelementptr i8, ptr %pool, i64 8
  %p.call = getelementptr i8, ptr %pool, i64 16
  %p.scratch = getelementptr i8, ptr %pool, i64 24
  %p.stride = getelementptr i8, ptr %pool, i64 32
  store ptr %entry.f, ptr %p.entry, align 8
  store ptr %call, ptr %p.call, align 8
  store ptr %scratch, ptr %p.scratch, align 8
  store i64 %stride, ptr %p.stride, align 8
  %workers = load i64, ptr %pool, align 8
  %alone = icmp sle i64 %workers, 1
  br i1 %alone, label %single, label %many
single:
  call void @tfir_execute(ptr %pool, i64 0, i64 0)
  ret void
many:
  %p.base = getelementptr i8, ptr %pool, i64 40
  %p.phase = getelementptr i8, ptr %pool, i64 64
  %phase = load atomic i64, ptr %p.phase acquire, align 8
  %base = lshr i64 %phase, 2
  store i64 %base, ptr %p.base, align 8
  call void @tfir_start(ptr %pool, i64 0)
  %claim = call i64 @tfir_claim(ptr %pool, i64 0, i64 -1)
  %some = icmp sge i64 %claim, 0
  br i1 %some, label %work, label %out
work:
  call void @tfir_execute(ptr %pool, i64 0, i64 %claim)
  br label %out
out:
  ret void
}

; Ends the threads 1 … %count-1 and frees the pool.
define internal void @tfir_end(ptr %pool, i64 %count) nounwind {
entry:
  call void @tfir_start(ptr %pool, i64 3)
  %threads = call ptr @tfir_threads(ptr %pool)
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

_CONSTANTS = {"YIELD_AFTER": YIELD_AFTER, "LOOK_EVERY": LOOK_EVERY, "PATIENCE": PATIENCE}


def pool_text(target: Target) -> str:
    """Definitions of the pool for a target; ``pool_declarations`` go with it."""
    machine = target.triple.split("-")[0]
    _, pause = _PAUSES.get(machine, ("", ""))
    text = _TEXT.replace("PAUSE", pause).replace("CLOCK_MONOTONIC", "6" if "darwin" in target.triple else "1")
    for name, value in _CONSTANTS.items():
        text = text.replace(name, str(value))
    return text.strip()


def pool_declarations(target: Target) -> tuple[str, ...]:
    """External functions that the pool calls."""
    declaration, _ = _PAUSES.get(target.triple.split("-")[0], ("", ""))
    return (*DECLARATIONS, declaration) if declaration else DECLARATIONS
