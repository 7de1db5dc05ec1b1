//! `id-ctrl` and `id-ns`.

use clap::ArgMatches;
use oxblock_engine::{Error, ErrorKind};
use oxblock_nvme::identify::{CNS_CONTROLLER, CNS_NAMESPACE, Controller, Namespace, read_ascii};
use serde_json::{Value, json};
use zerocopy::FromBytes;

use super::Failure;
use super::device::Session;
use super::report::{Report, Sheet, hex_digits};

/// `oxblock nvme id-ctrl`
pub fn controller(session: &Session, _matches: &ArgMatches) -> Result<Report, Failure> {
    let (page, quirks, notices) = session.ask(|core, controller| async move {
        let page = controller.identify(&core, CNS_CONTROLLER, 0, 0).await?;
        Ok((page, controller.quirks().words(), controller.notices()))
    })?;
    let c: Box<Controller> = structure(&page)?;
    let mut sheet = Sheet::new("NVMe Identify Controller");
    who(&mut sheet, &c);
    administration(&mut sheet, &c);
    limits(&mut sheet, &c);
    command_sets(&mut sheet, &c);
    power_states(&mut sheet, &c);
    // Not the controller's words, but the driver's.
    sheet.text("quirks", &quirks);
    sheet.text("notices", &notices.join("; "));
    Ok(sheet.report())
}

fn who(sheet: &mut Sheet, c: &Controller) {
    let ieee = u32::from_le_bytes([c.ieee[0], c.ieee[1], c.ieee[2], 0]);
    sheet.hex("vid", c.vid.get());
    sheet.hex("ssvid", c.ssvid.get());
    sheet.text("sn", &read_ascii(&c.sn));
    sheet.text("mn", &read_ascii(&c.mn));
    sheet.text("fr", &read_ascii(&c.fr));
    sheet.number("rab", c.rab);
    sheet.shown("ieee", ieee.into(), format!("{ieee:06x}"));
    sheet.hex("cmic", c.cmic);
    sheet.number("mdts", c.mdts);
    sheet.hex("cntlid", c.cntlid.get());
    sheet.hex("ver", c.ver.get());
    sheet.hex("rtd3r", c.rtd3r.get());
    sheet.hex("rtd3e", c.rtd3e.get());
    sheet.hex("oaes", c.oaes.get());
    sheet.hex("ctratt", c.ctratt.get());
    sheet.hex("rrls", c.rrls.get());
    sheet.number("cntrltype", c.cntrltype);
    sheet.text("fguid", &hex_digits(&c.fguid));
    sheet.number("crdt1", c.crdt[0].get());
    sheet.number("crdt2", c.crdt[1].get());
    sheet.number("crdt3", c.crdt[2].get());
}

fn administration(sheet: &mut Sheet, c: &Controller) {
    sheet.number("nvmsr", c.nvmsr);
    sheet.number("vwci", c.vwci);
    sheet.number("mec", c.mec);
    sheet.hex("oacs", c.oacs.get());
    sheet.number("acl", c.acl);
    sheet.number("aerl", c.aerl);
    sheet.hex("frmw", c.frmw);
    sheet.hex("lpa", c.lpa);
    sheet.number("elpe", c.elpe);
    sheet.number("npss", c.npss);
    sheet.hex("avscc", c.avscc);
    sheet.hex("apsta", c.apsta);
    kelvin(sheet, "wctemp", c.wctemp.get());
    kelvin(sheet, "cctemp", c.cctemp.get());
    sheet.number("mtfa", c.mtfa.get());
    sheet.number("hmpre", c.hmpre.get());
    sheet.number("hmmin", c.hmmin.get());
    sheet.number("tnvmcap", c.tnvmcap.get());
    sheet.number("unvmcap", c.unvmcap.get());
    sheet.hex("rpmbs", c.rpmbs.get());
    sheet.number("edstt", c.edstt.get());
    sheet.number("dsto", c.dsto);
    sheet.number("fwug", c.fwug);
    sheet.number("kas", c.kas.get());
}

fn limits(sheet: &mut Sheet, c: &Controller) {
    sheet.hex("hctma", c.hctma.get());
    kelvin(sheet, "mntmt", c.mntmt.get());
    kelvin(sheet, "mxtmt", c.mxtmt.get());
    sheet.hex("sanicap", c.sanicap.get());
    sheet.number("hmminds", c.hmminds.get());
    sheet.number("hmmaxd", c.hmmaxd.get());
    sheet.number("nsetidmax", c.nsetidmax.get());
    sheet.number("endgidmax", c.endgidmax.get());
    sheet.number("anatt", c.anatt);
    sheet.number("anacap", c.anacap);
    sheet.number("anagrpmax", c.anagrpmax.get());
    sheet.number("nanagrpid", c.nanagrpid.get());
    sheet.number("pels", c.pels.get());
    sheet.number("domainid", c.domain.get());
    sheet.number("megcap", c.megcap.get());
}

fn command_sets(sheet: &mut Sheet, c: &Controller) {
    sheet.hex("sqes", c.sqes);
    sheet.hex("cqes", c.cqes);
    sheet.number("maxcmd", c.maxcmd.get());
    sheet.number("nn", c.nn.get());
    sheet.hex("oncs", c.oncs.get());
    sheet.hex("fuses", c.fuses.get());
    sheet.hex("fna", c.fna);
    sheet.hex("vwc", c.vwc);
    sheet.number("awun", c.awun.get());
    sheet.number("awupf", c.awupf.get());
    sheet.number("icsvscc", c.icsvscc);
    sheet.number("nwpc", c.nwpc);
    sheet.number("acwu", c.acwu.get());
    sheet.hex("ocfs", c.cdfs.get());
    sheet.hex("sgls", c.sgls.get());
    sheet.number("mnan", c.mnan.get());
    sheet.number("maxdna", c.maxdna.get());
    sheet.number("maxcna", c.maxcna.get());
    sheet.text("subnqn", &read_ascii(&c.subnqn));
    sheet.number("ioccsz", c.ioccsz.get());
    sheet.number("iorcsz", c.iorcsz.get());
    sheet.number("icdoff", c.icdoff.get());
    sheet.hex("fcatt", c.fcatt);
    sheet.number("msdbd", c.msdbd);
    sheet.hex("ofcs", c.ofcs.get());
}

fn power_states(sheet: &mut Sheet, c: &Controller) {
    let states = c.psd.iter().take(usize::from(c.npss) + 1);
    let mut list = Vec::new();
    for (index, state) in states.enumerate() {
        // Units of 10 mW, or of 0.1 mW with the scale bit.
        let watts = match state.flags & 1 {
            0 => f64::from(state.mp.get()) / 100.0,
            _ => f64::from(state.mp.get()) / 10_000.0,
        };
        let operational = if state.flags & 2 == 0 { "operational" } else { "non-operational" };
        sheet.line(&format!(
            "ps {index:4} : mp:{watts:.4}W {operational} enlat:{} exlat:{} rrt:{} rrl:{} rwt:{} \
             rwl:{}",
            state.enlat.get(),
            state.exlat.get(),
            state.rrt,
            state.rrl,
            state.rwt,
            state.rwl
        ));
        list.push(json!({
            "max_power": state.mp.get(), "flags": state.flags, "entry_lat": state.enlat.get(),
            "exit_lat": state.exlat.get(), "read_tput": state.rrt, "read_lat": state.rrl,
            "write_tput": state.rwt, "write_lat": state.rwl,
        }));
    }
    sheet.json("psds", Value::Array(list));
}

fn kelvin(sheet: &mut Sheet, key: &str, kelvin: u16) {
    let celsius = i32::from(kelvin) - 273;
    let shown = if kelvin == 0 { "0".into() } else { format!("{kelvin} K ({celsius} °C)") };
    sheet.shown(key, kelvin.into(), shown);
}

/// `oxblock nvme id-ns`
pub fn namespace(session: &Session, matches: &ArgMatches) -> Result<Report, Failure> {
    let nsid = super::namespaces::nsid(matches)?;
    let page = session.ask(move |core, controller| async move {
        controller.identify(&core, CNS_NAMESPACE, nsid, 0).await
    })?;
    let n: Box<Namespace> = structure(&page)?;
    let mut sheet = Sheet::new(format!("NVMe Identify Namespace {nsid}"));
    sizes(&mut sheet, &n);
    hints(&mut sheet, &n);
    formats(&mut sheet, &n);
    Ok(sheet.report())
}

fn sizes(sheet: &mut Sheet, n: &Namespace) {
    sheet.hex("nsze", n.nsze.get());
    sheet.hex("ncap", n.ncap.get());
    sheet.hex("nuse", n.nuse.get());
    sheet.hex("nsfeat", n.nsfeat);
    sheet.number("nlbaf", n.nlbaf);
    sheet.hex("flbas", n.flbas);
    sheet.hex("mc", n.mc);
    sheet.hex("dpc", n.dpc);
    sheet.hex("dps", n.dps);
    sheet.number("nmic", n.nmic);
    sheet.number("rescap", n.rescap);
    sheet.hex("fpi", n.fpi);
    sheet.number("dlfeat", n.dlfeat);
}

fn hints(sheet: &mut Sheet, n: &Namespace) {
    sheet.number("nawun", n.nawun.get());
    sheet.number("nawupf", n.nawupf.get());
    sheet.number("nacwu", n.nacwu.get());
    sheet.number("nabsn", n.nabsn.get());
    sheet.number("nabo", n.nabo.get());
    sheet.number("nabspf", n.nabspf.get());
    sheet.number("noiob", n.noiob.get());
    sheet.number("nvmcap", n.nvmcap.get());
    if n.nsfeat & Namespace::OPTIMAL != 0 {
        sheet.number("npwg", n.npwg.get());
        sheet.number("npwa", n.npwa.get());
        sheet.number("npdg", n.npdg.get());
        sheet.number("npda", n.npda.get());
        sheet.number("nows", n.nows.get());
    }
    sheet.number("mssrl", n.mssrl.get());
    sheet.number("mcl", n.mcl.get());
    sheet.number("msrc", n.msrc);
    sheet.number("anagrpid", n.anagrpid.get());
    sheet.number("nsattr", n.nsattr);
    sheet.number("nvmsetid", n.nvmsetid.get());
    sheet.number("endgid", n.endgid.get());
    sheet.text("nguid", &hex_digits(&n.nguid));
    sheet.text("eui64", &hex_digits(&n.eui64));
}

fn formats(sheet: &mut Sheet, n: &Namespace) {
    const PERFORMANCE: [&str; 4] = ["best", "better", "good", "degraded"];
    let mut list = Vec::new();
    for (index, format) in n.lbaf.iter().take(usize::from(n.nlbaf) + 1).enumerate() {
        let rp = format.rp & 3;
        let in_use = if index == n.format_index() { " (in use)" } else { "" };
        sheet.line(&format!(
            "lbaf {index:2} : ms:{:<3} lbads:{:<2} rp:{rp:#x} {}{in_use}",
            format.ms.get(),
            format.lbads,
            PERFORMANCE[usize::from(rp)]
        ));
        list.push(json!({ "ms": format.ms.get(), "ds": format.lbads, "rp": rp }));
    }
    sheet.json("lbafs", Value::Array(list));
}

/// A data structure out of the bytes that the device sent.
pub fn structure<T: FromBytes>(bytes: &[u8]) -> Result<Box<T>, Failure> {
    let short = |_| {
        let text = format!("{} bytes came, {} were asked for", bytes.len(), size_of::<T>());
        Failure::Device(Error::new(ErrorKind::Io, text))
    };
    let exact = bytes.get(..size_of::<T>()).ok_or(()).map_err(short)?;
    T::read_from_bytes(exact).map(Box::new).map_err(|_| short(()))
}
