//! `packrun status`: how the coordinator is.

use crate::api::types::Status;
use crate::cli::Session;
use crate::cli::exit::{Error, Exit};
use crate::cli::output::{self, duration, time};
use crate::cli::world::World;

pub(in crate::cli) async fn run(session: &Session, world: &mut World<'_>) -> Result<Exit, Error> {
    let status = session.client(world)?.get::<Status>(&["v1", "status"], &[]).await?;
    let now = world.now;
    output::show(world, session.format, &status.body, |_| {
        let status = &status.value;
        let ready = match (&status.reason, status.ready) {
            (_, true) => "yes".to_owned(),
            (Some(reason), false) => format!("no: {reason}"),
            (None, false) => "no".to_owned(),
        };
        let up = duration(now.since(status.started_at));
        let mut fields = vec![
            ("Version", status.version.clone()),
            ("Takes work", ready),
            ("Started", format!("{}, {up} ago", time(status.started_at))),
            ("Epoch", status.epoch.to_string()),
            ("Agents", format!("{} connected", status.agents)),
            ("Pack runs", format!("{} under way", status.pack_runs)),
            ("Job runs", format!("{} queued, {} held by agents", status.queued, status.held)),
        ];
        let quarantined =
            status.quarantined.iter().map(|(run, why)| ("Quarantined", format!("{run}: {why}")));
        fields.extend(quarantined);
        output::fields(&fields)
    })?;
    Ok(Exit::Done)
}
