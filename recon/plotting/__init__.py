"""Pictures for papers and logs: ``figures`` with matplotlib, ``panels`` without, for pictures beside each other."""
