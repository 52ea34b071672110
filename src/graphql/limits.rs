//! The limits of a request, and its defaults.

/// Longest document, in bytes; it has no key.
const QUERY_BYTES: usize = 32 * 1_024;

/// The limits of a request, with the names of the configuration.
#[derive(Clone, Debug)]
pub struct QueryLimits {
    /// Levels of selection sets, fragments expanded.
    pub query_depth: usize,
    /// Fields, fragment spreads, inline fragments, directives and values of arguments, fragments
    /// expanded.
    pub query_complexity: usize,
    /// Aliases, fragments expanded.
    pub query_aliases: usize,
    /// Lexical tokens of the document.
    pub query_tokens: usize,
    /// Fields of list items in one result, fragments expanded: the depth of each book times what is
    /// selected below its `bids` and `asks`; the number of candles, or of entries of a page, or of
    /// all markets, times what is selected below.
    pub query_list_fields: usize,
    /// Bytes of the document. Each open stream keeps its own, so this times the streams is memory.
    pub query_bytes: usize,
    /// Markets one subscription may name.
    pub markets_per_subscription: usize,
    /// Deepest book that can be asked for, in levels a side.
    pub book_depth: usize,
    /// Whether the schema may be asked for.
    pub introspection: bool,
}

impl Default for QueryLimits {
    fn default() -> Self {
        Self {
            query_depth: 12,
            query_complexity: 2_000,
            query_aliases: 30,
            query_tokens: 2_000,
            query_list_fields: 100_000,
            query_bytes: QUERY_BYTES,
            markets_per_subscription: 100,
            book_depth: 5_000,
            introspection: true,
        }
    }
}

/// Levels a side of a book whose depth isn't given.
pub const DEFAULT_DEPTH: usize = 25;

/// Most candles that one query gives: three and a half days of minutes, some 1.5 MB with every
/// field.
pub const MOST_CANDLES: usize = 5_000;
/// Candles of a query without `last`.
pub const DEFAULT_CANDLES: usize = 500;
