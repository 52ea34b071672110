//! To be written.

pub fn sdl() -> String {
    String::new()
}
