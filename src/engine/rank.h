// The rank process: one scheduler, one KV pool and one model. The front process starts it with exec, hands it what it
// needs through inherited file descriptors, and talks to it over ZeroMQ.
//
// Contract of `sluice rank <spec-fd>`:
//   argv   "rank" and the number of an inherited descriptor: a memfd that write_rank_spec() made. No secrets and no
//          sizes pass through the command line or the environment; nothing else of the environment is read.
//   fds    spec-fd and the descriptors named in the spec keep their numbers (posix_spawn: adddup2(fd, fd) clears
//          close-on-exec). stdout and stderr are inherited: log lines go to stderr.
//   ZMQ    the front binds both endpoints before it starts the rank. The rank connects a PULL to `input_endpoint`
//          (frames of ToRank) and a PUSH to `output_endpoint` (frames of FromRank, each with dp_rank and incarnation:
//          codec.h). Use a new input endpoint for every incarnation of a rank, or frames meant for the dead one reach
//          the new one.
//   start  RankProgress while the model loads, then exactly one of RankReady and RankFailed. After RankFailed the
//          process exits with status 1. Requests may be sent at once; they wait until the rank is ready.
//   load   row `dp_rank` of the load board is written after every step and at least once a second.
//   end    exit status 0 when the lifeline closes (at any time, also in the middle of loading or of a step) and after
//          ControlKind::kShutdown. SIGINT and SIGTERM are ignored: the front drains and then lets go of the lifeline.
#pragma once

#include <cstdint>
#include <string>

#include "base/result.h"
#include "engine/options.h"

namespace sluice::engine {

struct RankSpec {
  int64_t dp_rank = 0;
  // Number of this start of the rank; every frame carries it, so that the front can drop those of a dead one.
  uint64_t incarnation = 0;
  // Ranks of this host that share its cores and memory: dp_size, or the number of workers times dp_size when several
  // servers were started together.
  int64_t host_ranks = 1;
  std::string model_file;      // resolved by models/locate.h
  std::string tokenizer_file;  // folder or .gguf that the tokenizer is read from, for stop strings
  std::string input_endpoint;  // ZeroMQ addresses, for example "ipc://@sluice-<pid>-<dp_rank>-<incarnation>"
  std::string output_endpoint;
  int load_board_fd = -1;  // LoadBoard::fd()
  int weights_fd = -1;     // memfd for the packed weights that the ranks of the host share; -1: not shared
  int lifeline_fd = -1;    // read end of a pipe whose write end only the front holds
  EngineOptions options;   // api keys are left out by write_rank_spec()
};

// A memfd (close-on-exec set) with the spec, ready to be inherited. The caller closes it after the spawn.
Result<int> write_rank_spec(const RankSpec& spec);
Result<RankSpec> read_rank_spec(int fd);

// The whole life of the process, and its exit status.
int run_rank_process(const RankSpec& spec);

}  // namespace sluice::engine
