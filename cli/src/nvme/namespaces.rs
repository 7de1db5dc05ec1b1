//! `list-ns`, `create-ns`, `delete-ns`, `attach-ns`, `detach-ns` and `format`.

use std::sync::Arc;

use clap::ArgMatches;
use oxblock_drivers::nvme::{Controller as Host, NewNamespace};
use oxblock_engine::{Core, Error, ErrorKind};
use oxblock_nvme::NSID_ALL;
use oxblock_nvme::identify::{
    CNS_ACTIVE_LIST, CNS_ALLOCATED_LIST, CNS_CONTROLLER, CNS_NAMESPACE, Namespace,
};
use serde_json::{Value, json};
use zerocopy::FromBytes;

use super::Failure;
use super::device::Session;
use super::report::Report;

/// An option that is a number, at most `most`; 0 where it was not given and has no default.
pub fn number_up_to(matches: &ArgMatches, name: &str, most: u64) -> Result<u64, Failure> {
    let value = matches.get_one::<u64>(name).copied().unwrap_or(0);
    if value > most {
        return Err(Failure::Usage(format!("--{name}={value} is above {most}")));
    }
    Ok(value)
}

/// The namespace that a command is for.
pub fn nsid(matches: &ArgMatches) -> Result<u32, Failure> {
    Ok(number_up_to(matches, "namespace-id", u32::MAX.into())? as u32)
}

/// `oxblock nvme list-ns`
pub fn list(session: &Session, matches: &ArgMatches) -> Result<Report, Failure> {
    let cns = if matches.get_flag("all") { CNS_ALLOCATED_LIST } else { CNS_ACTIVE_LIST };
    let page = session
        .ask(move |core, controller| async move { controller.identify(&core, cns, 0, 0).await })?;
    let ids = super::list::ids(&page);
    let text: String = ids.iter().map(|nsid| format!("{nsid:#x}\n")).collect();
    let list: Vec<Value> = ids.iter().map(|nsid| json!({ "nsid": nsid })).collect();
    Ok(Report { text, json: json!({ "nsid_list": list }) })
}

/// `oxblock nvme create-ns`
pub fn create(session: &Session, matches: &ArgMatches) -> Result<Report, Failure> {
    let nsze = number_up_to(matches, "nsze", u64::MAX)?;
    let new = NewNamespace {
        nsze,
        ncap: matches.get_one::<u64>("ncap").copied().unwrap_or(nsze),
        flbas: number_up_to(matches, "flbas", 0xff)? as u8,
        dps: number_up_to(matches, "dps", 0xff)? as u8,
        nmic: number_up_to(matches, "nmic", 0xff)? as u8,
        csi: number_up_to(matches, "csi", 0xff)? as u8,
    };
    let nsid = session.ask(move |core, controller| async move {
        controller.create_namespace(&core, new).await
    })?;
    let text = format!("created namespace {nsid}; attach-ns makes it active");
    Ok(Report::done(text, json!({ "nsid": nsid })))
}

/// `oxblock nvme delete-ns`
pub fn delete(session: &Session, matches: &ArgMatches) -> Result<Report, Failure> {
    let nsid = nsid(matches)?;
    session.ask(move |core, controller| async move {
        controller.delete_namespace(&core, nsid).await
    })?;
    Ok(done("deleted", nsid))
}

/// `oxblock nvme attach-ns`
pub fn attach(session: &Session, matches: &ArgMatches) -> Result<Report, Failure> {
    let (nsid, asked) = (nsid(matches)?, controllers(matches)?);
    session.ask(move |core, controller| async move {
        let ids = or_itself(&core, &controller, asked).await?;
        controller.attach_namespace(&core, nsid, &ids).await
    })?;
    Ok(done("attached", nsid))
}

/// `oxblock nvme detach-ns`
pub fn detach(session: &Session, matches: &ArgMatches) -> Result<Report, Failure> {
    let (nsid, asked) = (nsid(matches)?, controllers(matches)?);
    session.ask(move |core, controller| async move {
        let ids = or_itself(&core, &controller, asked).await?;
        controller.detach_namespace(&core, nsid, &ids).await
    })?;
    Ok(done("detached", nsid))
}

fn done(what: &str, nsid: u32) -> Report {
    let which =
        if nsid == NSID_ALL { "all namespaces".into() } else { format!("namespace {nsid}") };
    Report::done(format!("{what} {which}"), json!({ "nsid": nsid }))
}

fn controllers(matches: &ArgMatches) -> Result<Vec<u16>, Failure> {
    let ids = matches.get_many::<u64>("controllers").into_iter().flatten();
    let id = |id: &u64| {
        u16::try_from(*id).map_err(|_| Failure::Usage(format!("controller ID {id} is above 65535")))
    };
    ids.map(id).collect()
}

/// The controllers asked for, or the one that is asked.
async fn or_itself(core: &Core, controller: &Host, ids: Vec<u16>) -> Result<Vec<u16>, Error> {
    if !ids.is_empty() {
        return Ok(ids);
    }
    let page = controller.identify(core, CNS_CONTROLLER, 0, 0).await?;
    let page = oxblock_nvme::identify::Controller::read_from_bytes(&page);
    let page = page.map_err(|_| Error::new(ErrorKind::Io, "a short identify page"))?;
    Ok(vec![page.cntlid.get()])
}

/// `oxblock nvme format`
pub fn format(session: &Session, matches: &ArgMatches) -> Result<Report, Failure> {
    let nsid = nsid(matches)?;
    let ses = number_up_to(matches, "ses", 7)? as u8;
    let wanted = match (matches.get_one::<u64>("lbaf"), matches.get_one::<u64>("block-size")) {
        (Some(&index), _) if index > 63 => {
            return Err(Failure::Usage(format!("--lbaf={index} is above 63")));
        }
        (Some(&index), _) => Wanted::Index(index as u8),
        (None, Some(&bytes)) => Wanted::Bytes(bytes),
        (None, None) => Wanted::Same,
    };
    let index = session.ask(move |core, controller| async move {
        let index = wanted.index(&core, &controller, nsid).await?;
        controller.format(&core, nsid, index, ses).await?;
        controller.rescan(&core).await?;
        Ok(index)
    })?;
    let report = done("formatted", nsid);
    let text = format!("{} with LBA format {index}", report.text);
    Ok(Report::done(text, json!({ "nsid": nsid, "lbaf": index, "ses": ses })))
}

/// The LBA format that is asked for.
#[derive(Clone, Copy)]
enum Wanted {
    /// The one in use.
    Same,
    Index(u8),
    /// Blocks of this size, without metadata.
    Bytes(u64),
}

impl Wanted {
    async fn index(self, core: &Core, controller: &Arc<Host>, nsid: u32) -> Result<u8, Error> {
        if let Wanted::Index(index) = self {
            return Ok(index);
        }
        let page = controller.identify(core, CNS_NAMESPACE, nsid, 0).await?;
        let page = Namespace::read_from_bytes(&page)
            .map_err(|_| Error::new(ErrorKind::Io, "a short identify page"))?;
        let Wanted::Bytes(bytes) = self else {
            return Ok(page.format_index() as u8);
        };
        let mut formats = page.lbaf.iter().take(usize::from(page.nlbaf) + 1);
        let fits = |format: &oxblock_nvme::identify::LbaFormat| {
            format.ms.get() == 0 && 1u64.checked_shl(format.lbads.into()) == Some(bytes)
        };
        formats.position(fits).map(|index| index as u8).ok_or_else(|| {
            let text = format!(
                "namespace {nsid} has no LBA format of {bytes} bytes; id-ns lists those it has"
            );
            Error::new(ErrorKind::NotSupported, text)
        })
    }
}
