//! Errors: what failed, where, and as which errno a host sees it.
//!
//! Two types, for two kinds of reader: [`Errno`] travels with a request and ends as an NBD error;
//! [`Error`] answers a control call and ends as a sentence for a person.

use std::fmt;

/// The error of one request: a Linux errno, never 0.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Errno(i32);

impl Errno {
    /// Input/output error: the device failed, or a checksum did not match.
    pub const EIO: Errno = Errno(libc::EIO);
    /// No space left, in log areas or under a sparse device.
    pub const ENOSPC: Errno = Errno(libc::ENOSPC);
    /// A request that cannot be served as it was made.
    pub const EINVAL: Errno = Errno(libc::EINVAL);
    /// A write to a read-only export.
    pub const EPERM: Errno = Errno(libc::EPERM);
    /// No memory for the request.
    pub const ENOMEM: Errno = Errno(libc::ENOMEM);
    /// Not possible as fast as the host asked (FAST_ZERO).
    pub const ENOTSUP: Errno = Errno(libc::EOPNOTSUPP);
    /// The request's result is larger than fits.
    pub const EOVERFLOW: Errno = Errno(libc::EOVERFLOW);
    /// Another thread is doing it.
    pub const EAGAIN: Errno = Errno(libc::EAGAIN);
    /// The daemon is stopping.
    pub const ESHUTDOWN: Errno = Errno(libc::ESHUTDOWN);

    /// An errno from the system; 0 and negative numbers become EIO.
    pub fn new(raw: i32) -> Errno {
        if raw > 0 { Errno(raw) } else { Errno::EIO }
    }

    /// Whether it means that a file system or a quota has no space.
    pub fn is_no_space(self) -> bool {
        matches!(self.0, libc::ENOSPC | libc::EDQUOT)
    }

    /// The C library's text for it, without its number, as a clause that begins with a small letter.
    pub fn words(self) -> String {
        let text = std::io::Error::from_raw_os_error(self.0).to_string();
        let mut words = text.split(" (os error").next().unwrap_or(&text).to_owned();
        if let Some(first) = words.get_mut(..1) {
            first.make_ascii_lowercase();
        }
        words
    }

    /// The raw number, always positive.
    pub fn raw(self) -> i32 {
        self.0
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Errno({}: {})", self.0, std::io::Error::from_raw_os_error(self.0))
    }
}

impl From<rustix::io::Errno> for Errno {
    fn from(e: rustix::io::Errno) -> Errno {
        Errno::new(e.raw_os_error())
    }
}

impl From<std::io::Error> for Errno {
    fn from(e: std::io::Error) -> Errno {
        Errno::new(e.raw_os_error().unwrap_or(libc::EIO))
    }
}

/// Why a control call failed. `what` names the thing and says what is wrong, in one sentence without a
/// full stop; `errno` is the system's, where there was one.
#[derive(Clone, Debug)]
pub struct Error {
    /// Which kind, for the caller's own handling.
    pub kind: ErrorKind,
    /// The sentence.
    pub what: String,
    /// The system's errno, if there was one.
    pub errno: Option<Errno>,
}

/// The kinds of [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// No such thing.
    NotFound,
    /// The thing exists already.
    Exists,
    /// The thing is in use.
    Busy,
    /// The arguments do not fit together.
    Invalid,
    /// Stored data is damaged or of an unknown version (checksum, version, sequence).
    Corrupt,
    /// The system refused.
    Io,
}

impl Error {
    /// An error without an errno.
    pub fn new(kind: ErrorKind, what: impl Into<String>) -> Error {
        Error { kind, what: what.into(), errno: None }
    }

    /// An error of the system while doing `what`.
    pub fn io(what: impl fmt::Display, e: impl Into<Errno>) -> Error {
        let errno = e.into();
        Error {
            kind: ErrorKind::Io,
            what: format!("{what}: {}", errno.words()),
            errno: Some(errno),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Error {}

/// The result of a control call.
pub type Result<T> = std::result::Result<T, Error>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_errno_in_words_is_a_clause_without_its_number() {
        assert_eq!(Errno::EIO.words(), "input/output error");
        assert_eq!(
            Error::io("volume v cannot be flushed", Errno::EIO).what,
            "volume v cannot be flushed: input/output error"
        );
    }
}
