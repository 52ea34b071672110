//! Clients of others, unchanged, and the pages in a browser. Their scripts are beside this file.

mod browser;
pub mod stock;
