//! Prints the table of hand-over jumps as README.md has it between `<!-- handover:begin -->` and `<!-- handover:end -->`.

fn main() -> anyhow::Result<()> {
    print!("{}", groot_policy::motion::simulation::table()?);
    Ok(())
}
