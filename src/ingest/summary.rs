//! Many reasons in one text.

/// Most names of a reason.
const MOST_NAMED: usize = 3;

/// The first of these in one text, and how many there are beside them; `None` if there is none.
pub fn summary(all: impl Iterator<Item = String>, count: usize) -> Option<String> {
    let named: Vec<_> = all.take(MOST_NAMED).collect();
    let more = count - named.len();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    (!named.is_empty()).then(|| named.join("; ") + &more)
}
