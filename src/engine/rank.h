// The rank process: one scheduler, one KV pool and one model. The front process starts it with exec, hands it what it
// needs through inherited descriptors, and talks to it over ZeroMQ.
//
// Contract of `sluice rank`, which start_rank() fulfils for the front:
//   argv   "rank" alone. No secrets and no sizes pass through the command line or the environment.
//   fds    SLUICE_RANK_SPEC_FD: a memfd with the spec as JSON. SLUICE_LOAD_BOARD_FD: LoadBoard::fd(); without it, on
//          another host than the front's, the rank sends a LoadReport instead.
//   SLUICE_WEIGHTS_FD,
//          if there is one: the memfd for the packed weights. SLUICE_GROUP_FD, for a rank of an instance of several:
//          ShmSegment::fd() of the instance, or where that is on several hosts one of this rank alone, in which it
//          shows where it is. Log lines go to stderr.
//   env    SLUICE_HOST_WORKERS, if set: servers that were started together on this host (`sluice serve`), each of which
//          gets its part of the memory; and of the cores, where --threads does not say. Everybody passes it on.
//   ZMQ    the front binds both endpoints before it starts the rank. The rank connects a PULL to `input_endpoint`
//          (frames of ToRank) and a PUSH to `output_endpoint` (frames of FromRank, each with process and incarnation:
//          codec.h). Use a new input endpoint for every incarnation of a rank, or frames meant for the dead one reach
//          the new one. No high-water mark is set on either side of the rank.
//   start  RankProgress while the model loads, then exactly one of RankReady and RankFailed. After RankFailed the
//          process exits with status 1. Requests may be sent at once; they wait until the rank is ready.
//   groups (--tp-size) The ranks of an instance step together (group_runner.h). One of each attention group takes its
//          requests; the others get WakeRequest and ControlKind::kShutdown alone. Where one ends, all do.
//   load   row `dp_rank` of the load board is written whenever something changes, by the rank that takes the requests:
//          after every step and message, and a second or two after the last, when its rates are 0 again.
//   end    exit status 0 after ControlKind::kShutdown; SIGTERM ends it at once. When the front ends, however it ends,
//   so does the rank
//          (base/process.h, end_with_parent()). SIGINT is ignored: a Ctrl-C is for the front, which drains.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "base/process.h"
#include "base/result.h"
#include "engine/options.h"

namespace sluice::engine {

inline constexpr const char* kHostWorkersVariable = "SLUICE_HOST_WORKERS";

struct RankSpec {
  int64_t process = 0;  // of the server's ranks
  int64_t dp_rank = 0;  // the row of the load board whose requests it computes
  int64_t tp_rank = 0;  // in its instance
  // Number of this start of the rank; every frame carries it, so that the front can drop those of a dead one.
  uint64_t incarnation = 0;
  std::string model_file;      // resolved by models/locate.h
  std::string tokenizer_file;  // what the front gave to load_tokenizer()
  std::string input_endpoint;  // ZeroMQ addresses, for example "ipc://@sluice-<pid>-<dp_rank>-<incarnation>"
  std::string output_endpoint;
  // Of an instance on several hosts, whose ranks meet over TCP: host:port of its RendezvousServer, and the address by
  // which other ranks reach this one.
  std::string rendezvous;
  std::string address;
  EngineOptions options;  // API keys do not reach the rank
};

// Front: starts `sluice rank` of this executable, in a process group of its own and keeping the tail of its stderr.
// The descriptors stay the caller's; -1: there is none. `on_stderr_line` as in ProcessOptions.
struct RankDescriptors {
  int load_board = -1;
  int weights = -1;
  int group = -1;
};
Result<Process> start_rank(const RankSpec& spec, const RankDescriptors& descriptors,
                           std::function<void(std::string_view)> on_stderr_line = {});

// Rank: the whole life of the process, and its exit status.
int run_rank_process();

std::string rank_spec_to_json(const RankSpec& spec);
Result<RankSpec> rank_spec_from_json(std::string_view json);

}  // namespace sluice::engine
