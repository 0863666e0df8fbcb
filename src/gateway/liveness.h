// Which workers are alive, judged by what they do and not by what they say. A worker that has requests and from which
// no byte of any answer has come for longer than its prompts can take is suspect: it gets no new work and is probed at
// once. Nothing is cancelled. It is trusted again with the next byte, when it has generated for a probe, or, where
// there is no such probe, with the first of the requests that may try it one at a time.
//
// Of an answer that comes whole nothing is seen while it is decoded, and its length may be open. A worker that may be
// at that is asked for progress: once its prompts should be done it has to generate for a probe, within a second, twice
// what such probes have taken it lately, or the time of prompts that have come meanwhile.
//
// A worker that comes (back) while others serve begins with one request at a time (slow start): its cache is empty, and
// whatever had made it go may still be there.
#pragma once

#include <algorithm>
#include <functional>
#include <optional>
#include <string>
#include <unordered_map>

#include "base/clock.h"
#include "gateway/context.h"

namespace sluice::gateway {

// Control thread only, unless said otherwise.
class Liveness {
 public:
  // `probe`: probe it soon. Both outlive this.
  Liveness(Context& context, std::function<void(const WorkerPtr&)> probe)
      : context_(context), probe_(std::move(probe)) {}

  // To be called every kInterval while requests are in flight or it is not settled, and every kIdleInterval otherwise.
  void look();
  // Nobody is suspect, slow or silent, and no window limits.
  bool is_settled() const { return settled_ && !context_.some_busy.load(std::memory_order_relaxed); }
  static constexpr Duration kInterval = std::chrono::milliseconds(250);
  static constexpr Duration kIdleInterval = std::chrono::milliseconds(500);

  // It comes (back), just before it is used, or after before_ready(). `is_new_process`: nothing that was held against
  // it counts.
  void returned(const WorkerPtr& worker, bool is_new_process);
  // The same in advance: any thread. returned() must follow.
  void before_ready(Worker& worker) const;
  // It is to generate for a probe, though it is no suspect.
  bool in_question(const Worker& worker) const;
  // Which question that is; 0 if it is none.
  uint64_t question(const Worker& worker) const;
  // How long such a probe is waited for.
  Duration patience(const Worker& worker) const;
  // What came of it, of a suspect or one in question: a token, after so long; nothing, for so long; or the worker knows
  // none.
  void generated(Worker& worker, Duration took);
  void generated_nothing(Worker& worker, uint64_t question, Duration waited);
  void cannot_generate_for_probes(Worker& worker);
  // A health check failed: the silence that it falls into is not honest work.
  void failed_check(const Worker& worker);
  void forget(const Worker& worker) { known_.erase(worker.number); }

 private:
  // The most of ten to twenty minutes.
  class Most {
   public:
    void pass_to(TimePoint now);
    void add(Duration one) { now_ = std::max(now_, one); }
    Duration value(TimePoint now) const;

   private:
    Duration now_{0}, before_{0};
    TimePoint began_{};
  };
  struct Known {
    WorkerPtr worker;
    int64_t heard = 0;        // WorkerLoad::heard_at when this looked last
    int64_t quiet_since = 0;  // of the silence that lasts; 0 = there is none
    // That the silence may last: what its requests explain, what is allowed beyond that, and after which it is asked
    // for progress. None: nothing is known, or answers are open; none that comes whole is awaited.
    std::optional<Duration> explained, most, ask_after;
    Duration lasts{0};
    int overdue = 0;                  // looks in a row that found it too long
    Most honest;                      // how much longer than explained a silence was that ended with a byte
    Most probe_took;                  // one that generated
    Duration prompts{0};              // of its backlog when the silence was looked at first
    std::optional<Duration> put_off;  // how long a question that is due may wait, from where ask_after counts
    bool failed_check = false;        // since a byte came last
    bool in_question = false;
    uint64_t question = 0;     // the latest
    bool has_probe = true;     // that generates
    TimePoint generated_at{};  // for a probe while in question
    bool vouched = false;      // by a probe, since a byte came last
    bool lied = false;         // and fell silent again: such probes say nothing of this worker
    std::optional<TimePoint> slow_since;
  };
  void look_at(const WorkerPtr& worker, TimePoint now);
  void byte_came(Known& known, int64_t heard, TimePoint now);
  void expect(Known& known) const;
  static Duration beyond(const Known& known, TimePoint now);
  static Duration usual(const Known& known, TimePoint now);
  void judge(Known& known, TimePoint now);
  static bool is_to_ask(Known& known, TimePoint now);
  void suspect(Known& known, std::string_view but);
  Known* find(const Worker& worker);
  void trust(Known& known, std::string_view why);
  bool others_serve() const;
  void begin_slowly(Known& known);
  void go_on_slowly(Known& known);
  void raise_limits(const WorkerList& workers, TimePoint now);

  Context& context_;
  const std::function<void(const WorkerPtr&)> probe_;
  std::unordered_map<uint32_t, Known> known_;  // by number; of workers with something to remember
  uint64_t questions_ = 0;                     // that were asked
  bool settled_ = true;                        // but for windows
};

}  // namespace sluice::gateway
