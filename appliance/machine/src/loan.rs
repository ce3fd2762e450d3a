//! A function that another driver has for a while.

use crate::apply::Function;
use crate::plan::users;
use crate::{ApplyError, Host, PciAddress, VFIO_DRIVER};

/// A function that was lent to a driver, and what it was before.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "it stays with that driver until it is given back"]
pub struct Loan {
    address: PciAddress,
    driver: String,
    former_driver: Option<String>,
    former_override: Option<String>,
}

/// Has `driver`, which is loaded, take one function that nobody has, or that vfio-pci has and nobody uses. Where
/// it does not take it, the function is what it was before.
///
/// # Errors
/// [`ApplyError`], with what is now.
pub fn lend(host: &dyn Host, address: PciAddress, driver: &str) -> Result<Loan, ApplyError> {
    let function = Function { host, address };
    let (facts, device) = function.look_again()?;
    if let Some(other) = device.driver.as_deref()
        && other != VFIO_DRIVER
    {
        return Err(function.not_taken(format!("driver {other} has it")));
    }
    let users = users(&facts, &device);
    if !users.is_empty() {
        return Err(function.not_taken(format!("it is in use by {}", users.join(", "))));
    }
    let loan = Loan {
        address,
        driver: driver.to_owned(),
        former_driver: device.driver,
        former_override: device.driver_override,
    };
    // The override first: from the moment it has no driver, only this one may take it.
    let lent = function
        .set_override(Some(driver))
        .and_then(|()| function.unbind())
        .and_then(|()| function.probe());
    let error = match (lent, function.driver()) {
        (Ok(()), Some(now)) if now == driver => return Ok(loan),
        (Err(error), _) => error,
        (Ok(()), _) => function.not_taken(format!("driver {driver} did not take it")),
    };
    match loan.give_back(host) {
        Ok(()) => Err(error),
        Err(second) => Err(function.not_taken(format!("{error}; and {second}"))),
    }
}

impl Loan {
    /// Makes the function what it was. One that was pulled out, or that somebody else has by now, is left alone.
    ///
    /// # Errors
    /// [`ApplyError`], with what is now.
    pub fn give_back(&self, host: &dyn Host) -> Result<(), ApplyError> {
        let function = Function {
            host,
            address: self.address,
        };
        if !host.exists(&function.file("vendor")) {
            return Ok(());
        }
        if function.driver().is_none_or(|driver| driver == self.driver) {
            function.set_override(self.former_driver.as_deref().or(Some(&self.driver)))?;
            function.unbind()?;
            if self.former_driver.is_some() {
                function.probe()?;
            }
        }
        function.set_override(self.former_override.as_deref())?;
        let now = function.driver();
        if now == self.former_driver {
            return Ok(());
        }
        let name = |driver: &Option<String>| driver.clone().unwrap_or("no driver".to_owned());
        Err(function.not_taken(format!(
            "{} has it, and {} had it before",
            name(&now),
            name(&self.former_driver)
        )))
    }
}
