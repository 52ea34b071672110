//! The key by which operations share a response stream: document, variables and audience.

/// Operations with equal keys share one response stream. Built from the text itself rather than
/// from a hash, so that no two different operations can ever meet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct OperationKey {
    /// The document with any literal `after` argument taken out.
    pub document: String,
    pub operation_name: Option<String>,
    /// The variables as JSON with sorted keys, without the one that `after` is bound to.
    pub variables: String,
    /// Who may see the results: empty if all clients get the same ones.
    pub audience: String,
    /// Whether each result carries `extensions.cursor`, as the encoded bytes then differ.
    pub cursor_extension: bool,
}
