//! How many instructions the steps of an event cost, from its line to the sockets: `make
//! instructions`. Valgrind counts them, so the numbers hardly depend on the machine and its load.

mod book;
mod hub;
mod line;

use gungraun::main;

use book::book_group;
use hub::hub_group;
use line::line_group;

main!(library_benchmark_groups = [line_group, book_group, hub_group]);
