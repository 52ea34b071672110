//! Who reads a stream: what decides how much its encoding may cost.

/// See the module's text.
#[derive(Clone, Copy, Debug)]
pub struct Readership {
    pub readers: usize,
    /// More than one owner has read it. Then the streams of its first owner do not count.
    pub shared: bool,
}
