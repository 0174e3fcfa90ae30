// One other node of a partitioned cache, as this node sees it: connections that are kept, and a judgement whether it is worth
// asking.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <absl/time/time.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "data/partition_protocol.h"
#include "data/partition_socket.h"
#include "data/record_source.h"

namespace tidepool::data {

// Whether to ask a peer. Pure: events and `now` in, decisions out. After a failure nobody asks for a while, which doubles with
// each further failure; then one request may try, and if it succeeds all may. Thread-compatible.
class PeerHealth {
 public:
  struct Options {
    absl::Duration first_wait = absl::Milliseconds(100);
    absl::Duration longest_wait = absl::Seconds(10);
    uint64_t seed = 0;  // waits differ by up to a quarter, so that peers do not come back all at once
  };
  explicit PeerHealth(Options options) : options_(options) {}

  // If true, Succeeded or Failed follows.
  bool MayAsk(absl::Time now);
  void Succeeded();
  void Failed(absl::Time now);
  bool up() const { return failures_ == 0; }

 private:
  const Options options_;
  int failures_ = 0;  // since the last success
  absl::Time wait_until_ = absl::InfinitePast();
  bool trying_ = false;
  uint64_t waits_ = 0;
};

struct PeerOptions {
  PartitionIdentity identity;
  uint32_t from = 0, to = 0;
  std::string address;
  std::string key;                                         // empty: none, and a peer that has one is refused
  int max_connections = 4;                                 // a request more waits for one to be free
  absl::Duration request_limit = absl::Milliseconds(500);  // from the call to the head of the answer, connecting included
  int64_t min_bytes_per_s = 20'000'000;                    // the bytes of a record get this much longer
  int64_t max_record_bytes = int64_t{256} << 20;
  PeerHealth::Options health;
};

struct PeerStats {
  int64_t requests = 0;             // sent or tried
  int64_t records = 0, absent = 0;  // answers
  int64_t refused = 0;              // Error answers
  int64_t failures = 0;             // connections that failed, timed out or sent what does not parse
  int64_t retries = 0;              // a kept connection was dead; a fresh one was tried
  int64_t connects = 0;
  int64_t skipped = 0;  // not asked, because it is down
  int64_t record_bytes = 0;
  bool up = true;
};

// Thread-safe.
class PartitionPeer {
 public:
  explicit PartitionPeer(PeerOptions options) : options_(std::move(options)), health_(options_.health) {}

  struct Answer {
    RecordView record;  // if it has it
    bool absent = false;
    bool absent_for_good = false;
    bool restarted = false;  // it has started again since the last answer: what it said before holds no more
  };
  // UNAVAILABLE if the peer is down or fell silent, DEADLINE_EXCEEDED if it is slow, DATA_LOSS if its bytes do not match their
  // checksum, INVALID_ARGUMENT if they do not parse; FAILED_PRECONDITION if the two are not set up alike; else the error that it
  // answered with. Not longer than request_limit, plus the time of the record's bytes at min_bytes_per_s.
  StatusOr<Answer> Fetch(int64_t record);
  // Closes the connections that no call uses. The next Fetch makes a new one.
  void CloseIdle();
  bool up() const;
  PeerStats stats() const;

 private:
  struct Call {
    TcpSocket socket;
    bool kept = false;      // it was used before
    bool answered = false;  // at least one byte of an answer came
  };
  StatusOr<Call> Acquire(absl::Time deadline) ABSL_LOCKS_EXCLUDED(mu_);
  StatusOr<Answer> Ask(Call* call, int64_t record, absl::Time deadline) ABSL_LOCKS_EXCLUDED(mu_);
  StatusOr<Answer> AskAndRelease(int64_t record, absl::Time deadline, Call* call) ABSL_LOCKS_EXCLUDED(mu_);
  Status Greet(TcpSocket* socket, absl::Time deadline) ABSL_LOCKS_EXCLUDED(mu_);
  // Checks the peer's proof and gives this side's; the next frame is the answer to Hello.
  StatusOr<PartitionMessage> Authenticate(TcpSocket* socket, const HelloFrame& hello, const PartitionMessage& first,
                                          absl::Time deadline) const;
  StatusOr<RecordView> ReceiveRecord(TcpSocket* socket, uint64_t checksum, int64_t size);
  void DropIdle() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const PeerOptions options_;
  mutable absl::Mutex mu_;
  PeerHealth health_ ABSL_GUARDED_BY(mu_);
  std::vector<TcpSocket> idle_ ABSL_GUARDED_BY(mu_);
  int connections_ ABSL_GUARDED_BY(mu_) = 0;  // idle ones and those in use
  uint64_t incarnation_ ABSL_GUARDED_BY(mu_) = 0;
  bool restarted_ ABSL_GUARDED_BY(mu_) = false;  // to be told with the next answer
  uint64_t next_call_ ABSL_GUARDED_BY(mu_) = 1;
  PeerStats stats_ ABSL_GUARDED_BY(mu_);
};

}  // namespace tidepool::data
