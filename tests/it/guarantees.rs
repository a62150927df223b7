//! docs/guarantees.md names tests that are there, and one for each cell of its table.

use std::path::Path;

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).ok()
}

/// What stands between backticks and looks like `file.rs::name`.
fn named(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let quoted = text.split('`').skip(1).step_by(2);
    quoted.filter_map(|quoted| quoted.split_once("::")).filter(|(file, _)| file.ends_with(".rs"))
}

/// Whether `source` has a function of that name with the attribute of a test.
fn has_test(source: &str, name: &str) -> bool {
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let is_it = |line: &str| {
        let line = line.trim_start_matches("async ");
        line.strip_prefix("fn ")
            .and_then(|rest| rest.strip_prefix(name))
            .is_some_and(|rest| rest.starts_with('('))
    };
    lines.iter().position(|line| is_it(line)).is_some_and(|at| {
        let before = lines[..at].iter().rev().take_while(|line| line.starts_with(['#', '/']));
        before.into_iter().any(|line| line.starts_with("#[test]") || line.starts_with("#[tokio::test"))
    })
}

#[test]
fn each_cell_names_a_test_and_each_named_test_is_there() {
    let page = read("docs/guarantees.md").unwrap();
    let mut rows = 0;
    for row in page
        .lines()
        .skip_while(|line| !line.starts_with("|---"))
        .skip(1)
        .take_while(|line| line.starts_with('|'))
    {
        rows += 1;
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        assert_eq!(cells.len(), 4, "{row}");
        for (number, cell) in cells.iter().enumerate().skip(1) {
            let is_as_before = *cell == "←" && number > 1;
            assert!(is_as_before || named(cell).next().is_some(), "no test in the cell: {cell}\n{row}");
        }
    }
    assert!(rows > 10, "{rows} rows");
    for (file, name) in named(&page) {
        let source =
            read(file).unwrap_or_else(|| panic!("docs/guarantees.md names {file}, which is not there"));
        assert!(has_test(&source, name), "docs/guarantees.md names {file}::{name}, which is no test there");
    }
}
