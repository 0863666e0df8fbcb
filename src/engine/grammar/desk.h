// Where requests with a grammar wait until it is compiled. A thread compiles one after another, each for a bounded
// time; what came of it is kept, also that it did not work, so that a grammar is compiled once.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "engine/grammar/grammar.h"
#include "engine/messages.h"

namespace sluice::engine {

struct GrammarDeskOptions {
  size_t max_waiting = 256;      // requests; more are refused
  size_t cached_grammars = 256;  // and failures
  size_t cached_bytes = size_t{256} << 20;
};

// Used by one thread, which has one of its own.
class GrammarDesk {
 public:
  using Compiled = Result<std::shared_ptr<const Grammar>>;
  // On the desk's thread; bounded in time.
  using Compile = std::function<Compiled(GrammarKind, const std::string&)>;
  explicit GrammarDesk(Compile compile, GrammarDeskOptions options = {});
  // Waits for the grammar that is being compiled.
  ~GrammarDesk();

  // A request with its grammar, or with the error that it ends in, which names the client's field.
  struct Ready {
    GenerateRequest request;
    Compiled grammar;
  };

  // The request comes back from take(), at once where its grammar is known.
  void add(GenerateRequest request);
  std::vector<Ready> take();
  // Readable while take() has something.
  int fd() const { return fd_; }
  // Gives back what waits: the request with this rid, or all. What take() would return is included.
  std::vector<GenerateRequest> remove(const AbortRequest& which);
  // Requests that are not taken yet, and the tokens of their prompts.
  struct Waiting {
    int64_t requests = 0;
    int64_t tokens = 0;
  };
  Waiting waiting();
  // Since the beginning.
  GrammarCounts counts();

 private:
  using Key = std::pair<GrammarKind, std::string>;
  struct Kept {
    Compiled grammar;
    size_t bytes = 0;
    std::list<const Key*>::iterator place;  // in used_
  };

  void run();
  void keep(const Key& key, Compiled grammar);
  void give(GenerateRequest request, Compiled grammar);

  const Compile compile_;
  const GrammarDeskOptions options_;
  const int fd_;

  std::mutex mu_;  // guards what follows
  std::condition_variable changed_;
  bool stop_ = false;
  std::deque<Key> queue_;                             // to be compiled
  std::map<Key, std::vector<GenerateRequest>> held_;  // by their grammar, which is in queue_ or being compiled
  size_t held_count_ = 0;
  Waiting waiting_;
  std::vector<Ready> ready_;
  std::map<Key, Kept> kept_;
  std::list<const Key*> used_;  // latest first
  size_t kept_bytes_ = 0;
  GrammarCounts counts_;

  std::thread thread_;
};

}  // namespace sluice::engine
