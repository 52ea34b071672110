//! A plan is a file of arguments: what a scenario shows as comments, and what it runs.

use super::FloodArgs;
use clap::{Args, Command, FromArgMatches};
use std::path::Path;

/// The arguments in a file.
///
/// # Errors
/// When it can't be read.
pub fn read(file: &Path) -> Result<Vec<String>, String> {
    let text = std::fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or(""));
    Ok(lines.flat_map(str::split_ascii_whitespace).map(str::to_owned).collect())
}

/// What the command line says, and for the rest what the plan says.
///
/// # Errors
/// When the plan has an argument that isn't one.
pub fn merged(given: &FloodArgs, plan: &[String]) -> Result<FloodArgs, String> {
    let command = FloodArgs::augment_args(Command::new("plan").no_binary_name(true));
    let hub = ["--hub".to_owned(), given.hub.display().to_string()];
    let matches = command
        .try_get_matches_from(plan.iter().chain(&hub))
        .map_err(|error| format!("the plan: {error}"))?;
    let plan = FloodArgs::from_arg_matches(&matches).map_err(|error| error.to_string())?;
    Ok(FloodArgs {
        hub: given.hub.clone(),
        plan: None,
        attack: given.attack.or(plan.attack),
        kind: given.kind.or(plan.kind),
        sharing: given.sharing.or(plan.sharing),
        sockets: given.sockets.or(plan.sockets),
        operations: given.operations.or(plan.operations),
        from: given.from.or(plan.from),
        addresses: given.addresses.or(plan.addresses),
        rate: given.rate.or(plan.rate),
        deep: given.deep || plan.deep,
        steady: given.steady.or(plan.steady),
        before: given.before.or(plan.before),
        seconds: given.seconds.or(plan.seconds),
        settle: given.settle.or(plan.settle),
        after: given.after.or(plan.after),
        recovery: given.recovery.or(plan.recovery),
        memory_mib: given.memory_mib.or(plan.memory_mib),
        nice: given.nice.or(plan.nice),
        set: plan.set.into_iter().chain(given.set.clone()).collect(),
        json: given.json || plan.json,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flood::Flood;

    fn given(arguments: &[&str]) -> FloodArgs {
        let command = FloodArgs::augment_args(Command::new("flood").no_binary_name(true));
        FloodArgs::from_arg_matches(&command.try_get_matches_from(arguments).unwrap()).unwrap()
    }

    #[test]
    fn the_command_line_wins_over_the_plan() {
        let plan = ["--attack", "churn", "--sockets", "5", "--set", "a.b=1"].map(str::to_owned);
        let args = given(&["--hub", "x", "--plan", "y", "--sockets", "7", "--set", "c.d=2"]);
        let args = merged(&args, &plan).unwrap();
        assert_eq!((args.sockets, args.set), (Some(7), vec!["a.b=1".into(), "c.d=2".into()]));
        assert!(merged(&given(&["--hub", "x", "--plan", "y"]), &["--wrong".to_owned()]).is_err());
    }

    #[test]
    fn every_plan_of_ours_is_one_and_names_itself() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("plans");
        let mut plans = 0;
        for file in std::fs::read_dir(folder).unwrap() {
            let file = file.unwrap().path();
            let args = given(&["--hub", "x", "--plan", "y"]);
            let args = merged(&args, &read(&file).unwrap()).unwrap();
            assert!(Flood::of(&args).is_ok(), "{}", file.display());
            let name = format!("--plan loadtest/plans/{}", file.file_name().unwrap().display());
            assert!(std::fs::read_to_string(&file).unwrap().contains(&name), "{name}");
            plans += 1;
        }
        assert!(plans > 0);
    }
}
