// Health check of a MongoDB member in compose.yaml: exit 0 for a primary or secondary. The member that knows all the
// others' addresses (MAKE_REPLICA_SET) makes the set, if there is none; its name is the one given to mongod.
const members = process.env.MAKE_REPLICA_SET;
let hello = db.hello();
if (members && !hello.setName) {
  const name = db.adminCommand({ getCmdLineOpts: 1 }).parsed.replication.replSet;
  try {
    // Elections within about two seconds, as scripts/engines sets it.
    rs.initiate({
      _id: name,
      members: members.split(",").map((host, index) => ({ _id: index, host })),
      settings: { electionTimeoutMillis: 2000, heartbeatIntervalMillis: 500 },
    });
  } catch (error) {
    // Some member does not answer yet; the next check tries again.
    print(error.message);
  }
  hello = db.hello();
}
quit(hello.isWritablePrimary || hello.secondary ? 0 : 1);
