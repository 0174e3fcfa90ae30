// The process, or thread, between jobs that share preparation: it owns the staging memory and the ledger (shared_prep_ledger.h),
// and tells jobs over a Unix socket what to prepare and what to use. It never looks at a sample.
//
// A job that ends, however, is noticed by the end of its connection and by its pidfd. What it was preparing is leased to another
// job, and it owes nothing any more. A job that breaks the protocol, or holds up the others too long, is expelled: it gets an
// Error, and what it holds of the staging memory is out of use until its process has ended.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <absl/time/time.h>

#include <cstdint>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/fd.h"
#include "base/status.h"
#include "base/unix_socket.h"
#include "data/shared_prep_ledger.h"
#include "data/shared_prep_protocol.h"

namespace tidepool::data {

struct PrepCoordinatorOptions {
  std::string socket;         // path to listen at; mode 0600
  int64_t staging_bytes = 0;  // of batches in shared memory: as many slots as fit, at least 2
  int jobs = 1;               // that the first epoch waits for
  int held = 2;               // batches that a job may hold
  int max_connections = 64;
  absl::Duration join_limit = absl::Seconds(60);
  absl::Duration lease_limit = absl::Seconds(30);
  absl::Duration use_limit = absl::Seconds(60);
  absl::Duration hello_limit = absl::Seconds(5);  // from the connection to its Join

  Status Validate() const;
};

struct PrepCoordinatorStats {
  int64_t joined = 0, left = 0, refused = 0, expelled = 0;  // jobs, ever
  int connections = 0;
  int slots = 0, free_slots = 0, stuck_slots = 0;
  int64_t slot_bytes = 0;
  std::vector<PrepEpochAccount> epochs;
  std::vector<PrepJobAccount> jobs;  // those that have not left
};

// Thread-safe.
class PrepCoordinator {
 public:
  static StatusOr<std::unique_ptr<PrepCoordinator>> Start(PrepCoordinatorOptions options);
  // Jobs that are left get UNAVAILABLE from their next call.
  ~PrepCoordinator();

  PrepCoordinatorStats stats() const;
  // Until at least one job has joined and all that have joined have left. DEADLINE_EXCEEDED if that takes longer.
  Status AwaitAllLeft(absl::Time deadline);

 private:
  struct Connection {
    PacketSocket socket;
    UniqueFd process;  // a pidfd; invalid if it is this process's own thread
    absl::Time join_by;
    std::optional<PrepJob> job;
    bool ended = false;
  };

  PrepCoordinator(PrepCoordinatorOptions options, PacketListener listener, UniqueFd wake);
  void Loop();
  int WaitLimitMs() ABSL_LOCKS_EXCLUDED(mu_);
  void Accept();
  void Hear(Connection* connection);
  void Handle(Connection* connection, const Packet& packet);
  Status HandleJoin(Connection* connection, const PrepMessage& message);
  Status HandleJob(Connection* connection, PrepMessage message);
  void Expel(Connection* connection, const Status& why);
  void End(Connection* connection);
  void DropEnded();
  // Carries out what the ledger decides.
  void Advance();
  void Perform(const PrepAction& action);
  void SendTo(Connection* connection, const PrepMessage& message, int fd = -1);
  Connection* OfJob(PrepJob job);

  const PrepCoordinatorOptions options_;
  PacketListener listener_;
  const UniqueFd wake_;  // an eventfd
  // Of the loop's thread.
  std::list<Connection> connections_;
  UniqueFd staging_;
  std::optional<PrepPlan> plan_;

  mutable absl::Mutex mu_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::unique_ptr<PrepLedger> ledger_ ABSL_GUARDED_BY(mu_);  // from the first Join on
  PrepCoordinatorStats stats_ ABSL_GUARDED_BY(mu_);
  std::thread thread_;
};

}  // namespace tidepool::data
