//! The one module that makes processes without copying the parent: `clone3` or `clone` with `CLONE_VM` and
//! `CLONE_VFORK`. Neither the standard library nor a safe wrapper offers it together with a cgroup.
//!
//! Why it is sound: the calling thread is suspended until the child has executed its program or exited, so all
//! that [`ChildPlan`] points to outlives the child's use of it. The child runs on a stack of its own and never
//! returns from [`child_main`]; that function calls only system calls that are safe after `vfork`, allocates
//! nothing, takes no lock and cannot panic. All signals are blocked round the call, and the child puts every
//! handler back to the default before it unblocks them, so no handler of the parent ever runs in the child. What
//! it writes to shared memory is the two atomics of [`ChildPlan`] and the C library's `errno` of the suspended
//! thread, which reads it only after it has been set anew.
#![expect(unsafe_code, reason = "vfork semantics with a cgroup have no safe interface; argued above")]

use std::ffi::{CString, c_char, c_int, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};

use tokio::io::unix::AsyncFd;

/// Bytes of the child's stack; [`child_main`] and the C library's wrappers need a few hundred.
const STACK_BYTES: usize = 64 << 10;
const SIGNAL_MAX: c_int = 64;

/// Where a child failed before its program ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Session,
    Stdio,
    Folder,
    Program,
}

/// What a child is to become; all of it is prepared before the child exists.
pub(super) struct Image<'a> {
    /// Paths to try in order, as a search of `PATH` does.
    pub(super) programs: &'a [CString],
    pub(super) arguments: &'a [CString],
    pub(super) environment: &'a [CString],
    pub(super) folder: &'a CString,
    /// Standard input, output and error.
    pub(super) stdio: [BorrowedFd<'a>; 3],
}

/// A child that executes its program.
pub(super) struct Child {
    pub(super) pid: u32,
    pub(super) pidfd: OwnedFd,
}

/// Why there is no child.
pub(super) enum CloneError {
    /// The kernel made none.
    Clone(io::Error),
    /// It failed at this step, and has been reaped.
    Child(Step, io::Error),
}

/// The stack that children run on, one after the other: the caller is suspended while one does.
pub(super) struct Stack(Box<[MaybeUninit<u128>]>);

impl Stack {
    pub(super) fn new() -> Self {
        Self(Box::new_uninit_slice(STACK_BYTES / size_of::<u128>()))
    }
}

#[repr(C)]
struct ChildPlan {
    programs: *const *const c_char,
    arguments: *const *const c_char,
    environment: *const *const c_char,
    folder: *const c_char,
    stdio: [c_int; 3],
    failed_step: AtomicI32,
    errno: AtomicI32,
}

/// Makes a child in a session and process group of its own, with the signals as a program expects them and no
/// open files but the three of `image`. With a `cgroup` (an open folder) it is born in there.
pub(super) fn spawn(
    stack: &mut Stack,
    image: &Image<'_>,
    cgroup: Option<BorrowedFd<'_>>,
) -> Result<Child, CloneError> {
    let (programs, arguments, environment) =
        (pointers(image.programs), pointers(image.arguments), pointers(image.environment));
    let plan = ChildPlan {
        programs: programs.as_ptr(),
        arguments: arguments.as_ptr(),
        environment: environment.as_ptr(),
        folder: image.folder.as_ptr(),
        stdio: image.stdio.map(|fd| fd.as_raw_fd()),
        failed_step: AtomicI32::new(0),
        errno: AtomicI32::new(0),
    };
    let plan_pointer = ptr::from_ref(&plan).cast_mut().cast::<c_void>();
    let mut pidfd: c_int = -1;
    let cloned = with_signals_blocked(|| match cgroup {
        // SAFETY: `plan` and `stack` live until the call returns, which is after the child has let go of them.
        Some(cgroup) => unsafe { clone_into(stack, cgroup, &mut pidfd, plan_pointer) },
        None => {
            let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
            let top = stack.0.as_mut_ptr_range().end.cast::<c_void>();
            // SAFETY: as above; the C library switches to the stack and calls `child_main` on it.
            let pid = unsafe { libc::clone(child_main, top, flags, plan_pointer, &raw mut pidfd) };
            if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(pid) }
        }
    });
    let pid = cloned.map_err(CloneError::Clone)?;
    // SAFETY: the kernel has just opened it for us.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let step = match plan.failed_step.load(Ordering::Acquire) {
        0 => return Ok(Child { pid: pid.unsigned_abs(), pidfd }),
        1 => Step::Session,
        2 => Step::Stdio,
        3 => Step::Folder,
        _ => Step::Program,
    };
    let error = io::Error::from_raw_os_error(plan.errno.load(Ordering::Acquire));
    // The child has exited or is about to: this returns at once.
    let id = rustix::process::WaitId::PidFd(std::os::fd::AsFd::as_fd(&pidfd));
    let _ = rustix::io::retry_on_intr(|| {
        rustix::process::waitid(id.clone(), rustix::process::WaitIdOptions::EXITED)
    });
    Err(CloneError::Child(step, error))
}

/// A child that has exited and was not reaped yet, which it stays; `None` when all of them live.
///
/// # Errors
/// `ECHILD` when this process has no children at all.
pub(super) fn exited_child() -> io::Result<Option<u32>> {
    // SAFETY: a structure of integers, for which zeros are "nobody"; the call fills it.
    let (result, info) = unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        (libc::waitid(libc::P_ALL, 0, &raw mut info, libc::WEXITED | libc::WNOHANG | libc::WNOWAIT), info)
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: after `waitid` this member is the one in use.
    let pid = unsafe { info.si_pid() };
    Ok(u32::try_from(pid).ok().filter(|pid| *pid != 0))
}

/// A descriptor that the runtime waits for; must be called inside one.
pub(super) fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is the same open descriptor until it is dropped, which `AsyncFd` does after it has
    // deregistered it.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}

fn with_signals_blocked<T>(clone: impl FnOnce() -> T) -> T {
    let mut before = MaybeUninit::<libc::sigset_t>::uninit();
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `sigfillset` fills `all`, the first call fills `before`; both are read only after that.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
        let result = clone();
        libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), ptr::null_mut());
        result
    }
}

/// # Safety
/// `plan` points to a [`ChildPlan`] whose pointers are valid until this returns.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
unsafe fn clone_into(
    stack: &mut Stack,
    cgroup: BorrowedFd<'_>,
    pidfd: &mut c_int,
    plan: *mut c_void,
) -> io::Result<c_int> {
    const CLONE_INTO_CGROUP: u64 = 1 << 33;
    // SAFETY: a structure of integers, for which zeros are "nothing".
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = (libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD) as u64 | CLONE_INTO_CGROUP;
    arguments.pidfd = ptr::from_mut(pidfd) as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    arguments.stack = stack.0.as_mut_ptr() as u64;
    arguments.stack_size = STACK_BYTES as u64;
    arguments.cgroup = cgroup.as_raw_fd() as u64;
    let result: isize;
    // SAFETY: in the parent this is a plain system call. In the child it returns on the empty, aligned stack given
    // above, where nothing but the registers is read before `child_main` is called, which never returns.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, {plan}",
            "call {entry}",
            "ud2",
            "2:",
            plan = in(reg) plan,
            entry = in(reg) child_main as extern "C" fn(*mut c_void) -> c_int,
            inlateout("rax") libc::SYS_clone3 as isize => result,
            in("rdi") &raw mut arguments,
            in("rsi") size_of::<libc::clone_args>(),
            out("rcx") _,
            out("r11") _,
        );
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!(
            "svc #0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, {plan}",
            "blr {entry}",
            "brk #1",
            "2:",
            plan = in(reg) plan,
            entry = in(reg) child_main as extern "C" fn(*mut c_void) -> c_int,
            inlateout("x0") &raw mut arguments => result,
            in("x1") size_of::<libc::clone_args>(),
            in("x8") libc::SYS_clone3,
        );
    }
    c_int::try_from(result)
        .ok()
        .filter(|pid| *pid > 0)
        .ok_or_else(|| io::Error::from_raw_os_error(result.unsigned_abs() as c_int))
}

/// # Safety
/// None is needed: on this processor there is no way in, and the caller does without cgroups.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
unsafe fn clone_into(_: &mut Stack, _: BorrowedFd<'_>, _: &mut c_int, _: *mut c_void) -> io::Result<c_int> {
    Err(io::ErrorKind::Unsupported.into())
}

/// All that happens in the child. It has the parent's memory and the parent's thread-local storage.
extern "C" fn child_main(plan: *mut c_void) -> c_int {
    // SAFETY: the parent passes a plan that lives as long as it is suspended, and its arrays end with null.
    unsafe {
        let plan = &*plan.cast::<ChildPlan>();
        let fail = |step: i32| -> ! {
            plan.errno.store(*libc::__errno_location(), Ordering::Release);
            plan.failed_step.store(step, Ordering::Release);
            libc::_exit(127)
        };
        // The kernel's structure, all zeros: the default. The C library would refuse two that it keeps for itself
        // but that this process may have inherited as ignored. SIGKILL and SIGSTOP are refused, rightly.
        let default = [0_u64; 4];
        for signal in 1..=SIGNAL_MAX {
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), ptr::null::<c_void>(), 8_usize);
        }
        if libc::setsid() < 0 {
            fail(1);
        }
        // The sources are never 0, 1 or 2: the standard library keeps these three open from the start.
        let [input, output, error] = plan.stdio;
        if libc::dup2(input, 0) < 0 || libc::dup2(output, 1) < 0 || libc::dup2(error, 2) < 0 {
            fail(2);
        }
        // Ours are close-on-exec anyway; this is for what this process inherited. Before Linux 5.11 it does nothing.
        libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
        if libc::chdir(plan.folder) < 0 {
            fail(3);
        }
        let mut none = MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut());
        let mut program = plan.programs;
        let mut denied = false;
        while !(*program).is_null() {
            libc::execve(*program, plan.arguments, plan.environment);
            match *libc::__errno_location() {
                libc::ENOENT | libc::ENOTDIR => {}
                libc::EACCES => denied = true,
                _ => fail(4),
            }
            program = program.add(1);
        }
        if denied {
            *libc::__errno_location() = libc::EACCES;
        }
        fail(4)
    }
}
