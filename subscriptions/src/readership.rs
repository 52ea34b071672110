//! How many clients read a stream. It decides how much the stream's encoding may cost.

/// See the module's text.
#[derive(Clone, Copy, Debug)]
pub struct Readership {
    pub readers: usize,
    /// More than one owner has read it. Then the streams of its first owner do not count.
    pub shared: bool,
}
