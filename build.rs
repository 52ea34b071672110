//! Embeds GraphiQL, if `make` has brought it into the cache (web/graphiql/build.sh). Without it the hub
//! builds all the same, and its page says what is missing.

use std::collections::hash_map::DefaultHasher;
use std::env;
use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::hash::{Hash as _, Hasher as _};
use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    for variable in ["XDG_CACHE_HOME", "HOME"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    println!("cargo::rerun-if-changed=build.rs");
    let mut table = String::from("const FILES: &[File] = &[\n");
    if let Some(folder) = bundle() {
        println!("cargo::rerun-if-changed={}", folder.display());
        let mut paths = Vec::new();
        for entry in fs::read_dir(&folder)? {
            paths.push(entry?.path());
        }
        paths.sort();
        for path in paths.iter().filter(|path| path.extension() != Some("gz".as_ref())) {
            write_file(&mut table, path)?;
        }
    }
    table.push_str("];\n");
    fs::write(Path::new(&env::var("OUT_DIR")?).join("graphiql.rs"), table)?;
    Ok(())
}

/// Where web/graphiql/build.sh puts it.
fn bundle() -> Option<PathBuf> {
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")))?;
    let folder = cache.join("spreadly/graphiql/dist");
    folder.join("page.html.gz").exists().then_some(folder)
}

fn write_file(table: &mut String, path: &Path) -> Result<(), Box<dyn Error>> {
    let name = path.file_name().and_then(|name| name.to_str()).ok_or("a name is not UTF-8")?;
    let gzip = path.with_file_name(format!("{name}.gz"));
    let mut hasher = DefaultHasher::new();
    fs::read(path)?.hash(&mut hasher);
    // Weak, as it identifies the file however it is compressed.
    let etag = format!("W/\"{:016x}\"", hasher.finish());
    writeln!(
        table,
        "File {{ name: {name:?}, etag: {etag:?}, plain: include_bytes!({path:?}), \
         gzip: include_bytes!({gzip:?}) }},"
    )?;
    Ok(())
}
