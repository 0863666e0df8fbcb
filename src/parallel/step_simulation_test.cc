// The protocol of steps (step_member.h) without sockets or threads: StepMembers, as a rank has them, in a world of
// events with a clock of its own. A seed decides everything, so a run that fails can be repeated.
//
// A front sends requests to the ranks that lead their attention groups, aborts some, sends control messages, and tells
// everybody the numbers of what it sent. Messages take their time, each in the order of its link. Ranks prefill,
// decode, do both or nothing, and meet once more in each step, where data would move. They stall, crash, hang, throw
// and go astray. What is lost then is found by those who wait (time_left(), as in every Communicator) or by the front,
// whichever is first; the instance ends and its successor gets what was not answered.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>
#include <optional>
#include <queue>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "base/rng.h"
#include "parallel/progress.h"
#include "parallel/step_member.h"

namespace sluice::parallel {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr Duration kSilence = seconds(4);
constexpr Duration kLook = kSilence / 8;               // of a rank that waits, at those whom it misses
constexpr Duration kShortWait = milliseconds(1);       // of a rank that waits for work on its way to another
constexpr Duration kLongestStall = seconds(1);         // that must not be taken for a hang
constexpr Duration kLongestDelay = milliseconds(100);  // of a message
constexpr int64_t kChunk = 32;                         // of a prompt

// What happened, summed up over simulations.
struct Tally {
  int64_t exchanges = 0;                                // of rows, by all ranks of an instance
  int64_t idle = 0, extend = 0, decode = 0, mixed = 0;  // rows of leaders, by their mode
  int64_t steps = 0, parks = 0, requests = 0, aborts = 0, controls = 0, pauses = 0, stalls = 0;
  int64_t crashes = 0, hangs = 0, errors = 0;
  int64_t missed = 0;               // lives of an instance that ended because ranks missed another
  int64_t diverged = 0, found = 0;  // ranks that went astray, and such as were found in that exchange
};

enum class Divergence : uint8_t {
  kSeq,
  kKind,
  kPlanHash,
  kExperts,        // are elsewhere
  kControl,        // a control message does not reach the rank
  kConfiguration,  // the rank starts with another one
};
constexpr uint64_t kDivergences = 6;

class Simulation {
 public:
  Simulation(const Layout& layout, uint64_t seed, Tally& tally)
      : layout_(layout), rng_(seed), mixes_(rng_.below(2) == 0), tally_(tally) {
    start();
  }

  // The front sends something, as a rule.
  void act() {
    switch (rng_.below(12)) {
      case 0:
      case 1:
        abort_one();
        break;
      case 2:
        control(Control::kFlush);
        break;
      case 3:
        control(Control::kWeights);
        break;
      case 4:
        control(Control::kPause);
        break;
      case 5:
      case 6:
        control(Control::kContinue);
        break;
      default:
        for (uint64_t n = 1 + rng_.below(3); n > 0; --n) submit();
    }
    tell();
  }
  void send_request() {
    submit();
    tell();
  }
  void run_for(Duration time) {
    const TimePoint end = now_ + time;
    while (failure_.empty() && next_time() <= end) event();
    now_ = end;
  }
  // The front at work, with `mishaps` or without.
  void run_exchanges(int64_t count, bool mishaps) {
    const int64_t end = tally_.exchanges + count;
    TimePoint next_act = now_;
    const uint64_t events_between = 400 * ranks_.size();
    uint64_t events_left = rng_.below(events_between);
    while (failure_.empty() && tally_.exchanges < end) {
      if (next_act <= next_time()) {
        now_ = std::max(now_, next_act);
        act();
        next_act = now_ + random_time(milliseconds(1), seconds(3));
        continue;
      }
      if (mishaps && events_left-- == 0) {
        mishap();
        events_left = rng_.below(events_between);
      }
      event();
    }
  }
  // Until everything that was sent is done and all ranks are parked.
  void run_to_rest() {
    if (paused_) control(Control::kContinue);
    do {
      // What goes wrong at a rank that is parked is found when there is work.
      if (ailing_ || astray_ || misconfigured_ || diverged_from_) submit();
      if (astray_) control(Control::kWeights);
      tell();
      for (int64_t events = 0; failure_.empty() && next_time() < kNever; ++events) {
        if (events == 1'000'000) return fail("it never comes to rest");
        event();
      }
    } while (failure_.empty() && (astray_ || misconfigured_ || diverged_from_));
    if (failure_.empty()) check_rest();
  }
  // As soon as it can.
  void go_astray(Divergence how) {
    const size_t which = rng_.below(ranks_.size());
    if (how != Divergence::kConfiguration) {
      astray_.emplace(which, how);
      return;
    }
    misconfigured_ = which;
    at(now_, What::kFrontHears);  // of the end of some rank
  }
  const std::string& failure() const { return failure_; }
  // Of all that happened.
  uint64_t trace() const { return trace_; }

 private:
  static constexpr TimePoint kNever = TimePoint::max();

  enum class Control : uint8_t { kFlush, kWeights, kPause, kContinue };
  static bool concerns_followers(Control kind) { return kind == Control::kWeights; }

  struct Request {
    int64_t prompt = 0, output = 0;
    size_t leader = 0;
    bool needs_time = false;  // before it brings tokens
    bool ended = false;
  };
  struct Message {
    enum class Kind : uint8_t { kRequest, kAbort, kControl, kWake } kind;
    uint64_t value = 0;  // of a request its place, of a control message its number, of a wake-up that of the work
    Control control = Control::kFlush;
    TimePoint arrives;
  };
  // As the rank has it.
  struct Running {
    uint64_t place = 0;
    int64_t prompt = 0, output = 0;  // that are left
    TimePoint ready;
  };
  struct Rank {
    Rank(const Layout& layout, uint64_t configuration) : member(layout, configuration) {}
    enum class Is : uint8_t { kListening, kComputing, kWaiting, kGone } is = Is::kListening;
    StepMember member;
    std::deque<Message> inbox;
    TimePoint last_arrival;
    std::vector<Running> running;
    bool paused = false;
    int64_t steps = 0;
    std::deque<std::pair<uint64_t, Control>> held;
    std::vector<std::pair<uint64_t, int64_t>> obeyed;  // which, and after which exchange
    StepRow row;
    TimePoint posted;
    int64_t calls = 0;  // of the group
    TimePoint waits_since;
    TimePoint stalled_until;
    bool hangs = false;
  };
  // A call of all ranks: of rows, or of a step's data.
  struct Call {
    bool data = false;
    std::vector<StepRow> rows;
    std::vector<bool> came;  // [ranks]
    size_t missing = 0;
  };
  // As the first rank came to it.
  struct Plan {
    int64_t exchange = 0, hash = 0;
    uint64_t seen_by_all = 0;
    StepMember::Next next;
  };
  enum class What : uint8_t { kTurn, kMet, kComputed, kFrontHears, kGone, kStart };
  struct Event {
    TimePoint at;
    uint64_t order;
    What what;
    size_t rank;
    uint64_t life;
    bool operator>(const Event& other) const { return std::tie(at, order) > std::tie(other.at, other.order); }
  };

  void fail(std::string why) {
    if (failure_.empty()) failure_ = std::move(why);
  }

  // ---- time

  // Spread evenly over orders of magnitude.
  Duration random_time(Duration least, Duration most) {
    const double factor = static_cast<double>(most / least);
    return Duration(static_cast<int64_t>(static_cast<double>(least.count()) * std::pow(factor, rng_.uniform())));
  }
  void at(TimePoint time, What what, size_t rank = 0) { events_.push({time, ++orders_, what, rank, life_}); }
  static bool waits(const Rank& rank) { return rank.is == Rank::Is::kWaiting && !rank.hangs; }
  bool looks() const { return ailing_ && !ending_ && std::ranges::any_of(ranks_, waits); }
  TimePoint next_time() const {
    // Those who wait look now and then, which nothing else does.
    if (looks()) return events_.empty() ? next_look_ : std::min(next_look_, events_.top().at);
    return events_.empty() ? kNever : events_.top().at;
  }
  void event() {
    if (looks() && (events_.empty() || events_.top().at > next_look_)) {
      now_ = std::max(now_, next_look_);
      next_look_ = now_ + kLook;
      return look();
    }
    const Event event = events_.top();
    events_.pop();
    now_ = std::max(now_, event.at);
    note(static_cast<uint64_t>(now_.time_since_epoch().count()));
    note(event.rank << 8 | static_cast<uint64_t>(event.what));
    if (event.what == What::kStart) return start();
    if (event.life != life_) return;
    if (event.what == What::kFrontHears) return end_instance();
    Rank& rank = ranks_[event.rank];
    if (event.what == What::kGone) return gone(rank);
    if (rank.is == Rank::Is::kGone || rank.hangs) return;
    if (rank.stalled_until > now_) return at(rank.stalled_until, event.what, event.rank);
    switch (event.what) {
      case What::kTurn:
        return turn(rank);
      case What::kMet:
        return met(rank);
      default:
        return computed(rank);
    }
  }
  void note(uint64_t value) { trace_ = (trace_ ^ value) * 0x100000001b3; }
  size_t number(const Rank& rank) const { return static_cast<size_t>(&rank - ranks_.data()); }
  bool leads(size_t rank) const { return static_cast<int64_t>(rank) % layout_.attention_tp_size() == 0; }

  // ---- the front

  void start() {
    ++life_;
    ranks_.clear();
    for (int64_t rank = 0; rank < layout_.tp_size; ++rank) {
      Layout own = layout_;
      own.tp_rank = rank;
      const bool wrong = misconfigured_ && std::cmp_equal(*misconfigured_, rank);
      ranks_.emplace_back(own, /*configuration=*/wrong ? 8 : 7);
    }
    signs_ = std::vector<SignOfLife>(ranks_.size());
    for (SignOfLife& sign : signs_) sign.seen(now_);
    calls_.clear();
    first_call_ = 0;
    plans_.clear();
    asked_.clear();
    astray_.reset();
    lost_.reset();
    diverged_from_.reset();
    if (misconfigured_) diverges_from(1);
    misconfigured_.reset();
    ailing_.reset();
    found_by_ = 0;
    ready_ = true;
    ending_ = starting_ = false;
    if (paused_) control(Control::kPause);
    for (size_t place = first_open_; place < requests_.size(); ++place) {
      if (!requests_[place].ended) send(requests_[place].leader, {.kind = Message::Kind::kRequest, .value = place});
    }
    tell();
  }
  void send(size_t to, Message message) {
    link(to, message);
    work_.sent();
  }
  void link(size_t to, Message message) {
    Rank& rank = ranks_[to];
    message.arrives = std::max(rank.last_arrival, now_ + random_time(microseconds(10), kLongestDelay));
    rank.last_arrival = message.arrives;
    rank.inbox.push_back(message);
    at(message.arrives, What::kTurn, to);
  }
  void tell() {
    const auto number = work_.tell(ready_);
    for (size_t rank = 0; number && rank < ranks_.size(); ++rank) {
      link(rank, {.kind = Message::Kind::kWake, .value = *number});
    }
  }
  void submit() {
    const auto group = rng_.below(static_cast<uint64_t>(layout_.dp_size));
    const auto length = [&](double most) { return static_cast<int64_t>(std::pow(most, rng_.uniform())); };
    requests_.push_back({.prompt = length(200),
                         .output = length(40),
                         .leader = group * static_cast<uint64_t>(layout_.attention_tp_size()),
                         .needs_time = rng_.below(8) == 0});
    ++tally_.requests;
    if (ready_) send(requests_.back().leader, {.kind = Message::Kind::kRequest, .value = requests_.size() - 1});
  }
  void abort_one() {
    while (first_open_ < requests_.size() && requests_[first_open_].ended) ++first_open_;
    if (!ready_ || first_open_ == requests_.size()) return;
    const size_t place = first_open_ + rng_.below(requests_.size() - first_open_);
    if (requests_[place].ended) return;
    ++tally_.aborts;
    send(requests_[place].leader, {.kind = Message::Kind::kAbort, .value = place});
  }
  void control(Control kind) {
    if (kind == Control::kPause || kind == Control::kContinue) paused_ = kind == Control::kPause;
    tally_.pauses += kind == Control::kPause;
    if (!ready_) return;
    ++tally_.controls;
    asked_.push_back(kind);
    for (size_t rank = 0; rank < ranks_.size(); ++rank) {
      const Message message{.kind = Message::Kind::kControl, .value = asked_.size(), .control = kind};
      if (leads(rank)) {
        send(rank, message);
      } else if (concerns_followers(kind)) {
        link(rank, message);
      }
    }
  }
  // It has heard that a rank has ended, and ends the others.
  void end_instance() {
    if (std::exchange(ending_, true)) return;
    ready_ = false;
    for (size_t rank = 0; rank < ranks_.size(); ++rank) {
      // A rank that waits is told.
      if (ranks_[rank].is == Rank::Is::kWaiting) ranks_[rank].member.fail();
      at(now_ + random_time(microseconds(10), milliseconds(50)), What::kGone, rank);
    }
  }
  void gone(Rank& rank) {
    rank.is = Rank::Is::kGone;
    if (!std::ranges::all_of(ranks_, [](const Rank& r) { return r.is == Rank::Is::kGone; })) return;
    if (std::exchange(starting_, true)) return;
    at(now_ + milliseconds(500), What::kStart);
  }

  // ---- a rank, as in engine/rank_loop.cc

  void turn(Rank& rank) {
    if (rank.is != Rank::Is::kListening) return;
    while (!rank.inbox.empty() && rank.inbox.front().arrives <= now_) {
      take(rank, rank.inbox.front());
      rank.inbox.pop_front();
    }
    if (rank.member.next() == StepMember::Next::kSleep) return;
    post(rank);
  }
  void take(Rank& rank, const Message& message) {
    rank.member.heard();
    switch (message.kind) {
      case Message::Kind::kRequest: {
        const Request& request = requests_[message.value];
        rank.running.push_back(
            {.place = message.value, .prompt = request.prompt, .output = request.output, .ready = now_});
        if (request.needs_time) rank.running.back().ready += random_time(microseconds(100), milliseconds(30));
        break;
      }
      case Message::Kind::kAbort:
        if (std::erase_if(rank.running, [&](const Running& one) { return one.place == message.value; }) > 0) {
          end(message.value);
        }
        break;
      case Message::Kind::kControl:
        if (loses(rank, message)) break;
        rank.member.hold(message.value << 8 | static_cast<uint64_t>(message.control),
                         concerns_followers(message.control));
        rank.held.emplace_back(message.value, message.control);
        break;
      case Message::Kind::kWake:
        rank.member.heard_of(message.value);
        break;
    }
  }
  void end(uint64_t place) {
    if (std::exchange(requests_[place].ended, true)) fail(fmt::format("request {} ends twice", place));
  }
  void post(Rank& rank) {
    bool unready = false;
    StepRow row = leads(number(rank)) ? batch(rank, unready) : StepRow{};
    row.expert_places = rank.steps / 50;  // now and then they move
    rank.row = rank.member.post(row, unready);
    rank.posted = now_;
    if (astray_ && astray_->first == number(rank) && astray_->second != Divergence::kControl) {
      falsify(rank.row, astray_->second);
      diverges_from(rank.member.exchanges());
      astray_.reset();
    }
    come(rank, /*data=*/false);
  }
  // What the leader does next.
  StepRow batch(const Rank& rank, bool& unready) {
    StepRow row;
    if (!rank.paused) {
      int64_t prompts = 0, decoding = 0;
      for (const Running& one : rank.running) {
        if (one.ready > now_) {
          unready = true;
        } else if (one.prompt > 0) {
          prompts += one.prompt;
        } else {
          ++decoding;
        }
      }
      if (prompts + decoding > 0 && rng_.below(16) == 0) {  // it waits for a turn
        unready = true;
        prompts = decoding = 0;
      }
      const bool extend = prompts > 0, decode = decoding > 0 && (!extend || mixes_);
      row.num_tokens = std::min(prompts, kChunk) + (decode ? decoding : 0);
      row.is_extend_in_batch = extend;
      row.local_forward_mode = static_cast<int64_t>(extend && decode ? ForwardMode::kMixed
                                                    : extend         ? ForwardMode::kExtend
                                                    : decode         ? ForwardMode::kDecode
                                                                     : ForwardMode::kIdle);
    }
    ++(row.local_forward_mode == 1   ? tally_.extend
       : row.local_forward_mode == 2 ? tally_.decode
       : row.local_forward_mode == 3 ? tally_.mixed
                                     : tally_.idle);
    return row;
  }
  static void falsify(StepRow& row, Divergence how) {
    ++(how == Divergence::kSeq       ? row.seq
       : how == Divergence::kKind    ? row.kind
       : how == Divergence::kExperts ? row.expert_places
                                     : row.plan_hash);
  }
  void diverges_from(int64_t exchange) {
    diverged_from_ = exchange;
    ++tally_.diverged;
  }
  // Where others get the message, too.
  bool loses(const Rank& rank, const Message& message) {
    if (!astray_ || astray_->first != number(rank) || astray_->second != Divergence::kControl) return false;
    if (!concerns_followers(message.control) && layout_.dp_size == 1) return false;
    lost_ = message.value;
    astray_.reset();
    return true;
  }

  // ---- calls of the group

  void come(Rank& rank, bool data) {
    const auto at_call = static_cast<size_t>(rank.calls++ - first_call_);
    if (at_call == calls_.size()) {
      calls_.push_back({data, std::vector<StepRow>(ranks_.size()), std::vector<bool>(ranks_.size()), ranks_.size()});
    }
    Call& call = calls_[at_call];
    if (call.data != data) return fail(fmt::format("rank {} is in another call than the others", number(rank)));
    rank.is = Rank::Is::kWaiting;
    rank.waits_since = now_;
    signs_[number(rank)].seen(now_);
    call.rows[number(rank)] = rank.row;
    call.came[number(rank)] = true;
    if (--call.missing > 0) return;
    for (size_t other = 0; other < ranks_.size(); ++other) {
      if (now_ - ranks_[other].waits_since >= kSilence && !ailing_) fail("somebody was silent who did not hang");
      at(now_ + random_time(microseconds(2), milliseconds(2)), What::kMet, other);
    }
    tally_.exchanges += !data;
  }
  const Call& call_of(const Rank& rank) const { return calls_[static_cast<size_t>(rank.calls - 1 - first_call_)]; }
  void met(Rank& rank) {
    if (rank.is != Rank::Is::kWaiting || rank.member.next() == StepMember::Next::kEnd) return;
    const Call& call = call_of(rank);
    if (call.data) return step_done(rank);
    const auto gathered = rank.member.gathered(call.rows);
    const bool astray = diverged_from_ && rank.member.exchanges() >= *diverged_from_;
    if (!gathered.ok()) {
      if (!astray) return fail("a divergence that is none: " + gathered.error().message);
      if (gathered.error().message.find("ranks are out of step at exchange") == std::string::npos) {
        return fail("another error: " + gathered.error().message);
      }
      tally_.found += found_by_++ == 0;
      return ends(rank);
    }
    if (astray) return fail(fmt::format("rank {} goes on after a divergence", number(rank)));
    check_plan(rank);
    if (rank.member.plan().run) {
      rank.is = Rank::Is::kComputing;
      return at(now_ + random_time(microseconds(10), milliseconds(20)), What::kComputed, number(rank));
    }
    goes_on(rank);
  }
  // All come to the same.
  void check_plan(const Rank& rank) {
    const StepPlan& plan = rank.member.plan();
    const int64_t exchange = rank.member.exchanges();
    if (plans_.empty() || plans_.back().exchange < exchange) {
      plans_.push_back({exchange, plan.hash, plan.seen_by_all, rank.member.next()});
      if (plans_.size() > 4) plans_.pop_front();
      tally_.parks += plan.park;
      tally_.steps += plan.run;
      return;
    }
    const auto known = std::ranges::find(plans_, exchange, &Plan::exchange);
    if (known == plans_.end() || known->hash != plan.hash || known->seen_by_all != plan.seen_by_all ||
        known->next != rank.member.next()) {
      fail(fmt::format("rank {} has another plan than others at exchange {}", number(rank), exchange));
    }
  }
  void computed(Rank& rank) {
    if (diverged_from_ && rank.member.exchanges() >= *diverged_from_) return fail("data move after a divergence");
    come(rank, /*data=*/true);
  }
  void step_done(Rank& rank) {
    ++rank.steps;
    if (rank.row.num_tokens > 0) advance(rank);
    goes_on(rank);
  }
  void advance(Rank& rank) {
    const auto mode = static_cast<ForwardMode>(rank.row.local_forward_mode);
    int64_t left = kChunk, tokens = 0;
    for (Running& one : rank.running) {
      // Those that are ready since were not in the batch.
      if (one.ready > rank.posted) continue;
      if (one.prompt > 0) {
        if (mode == ForwardMode::kDecode) continue;
        const int64_t count = std::min(one.prompt, left);
        one.prompt -= count;
        left -= count;
        tokens += count;
      } else if (mode != ForwardMode::kExtend) {
        --one.output;
        ++tokens;
      }
    }
    if (tokens != rank.row.num_tokens) fail(fmt::format("{} tokens are computed of {}", tokens, rank.row.num_tokens));
    for (const Running& one : rank.running) {
      if (one.prompt == 0 && one.output <= 0) end(one.place);
    }
    std::erase_if(rank.running, [](const Running& one) { return one.prompt == 0 && one.output <= 0; });
  }
  void goes_on(Rank& rank) {
    rank.is = Rank::Is::kListening;
    while (rank.member.take_control()) {
      const auto [which, kind] = rank.held.front();
      rank.held.pop_front();
      rank.obeyed.emplace_back(which, rank.member.exchanges());
      // From now on the rank that has lost it is behind.
      if (lost_ == which && !diverged_from_) diverges_from(rank.member.exchanges() + 1);
      if (kind == Control::kPause || kind == Control::kContinue) rank.paused = kind == Control::kPause;
    }
    const auto first_wanted = std::ranges::min_element(ranks_, {}, &Rank::calls)->calls - 1;
    for (; first_call_ < first_wanted; ++first_call_) calls_.pop_front();
    switch (rank.member.next()) {
      case StepMember::Next::kPost:
        return at(now_ + microseconds(rng_.below(200)), What::kTurn, number(rank));
      case StepMember::Next::kAgain:
        return at(now_ + kShortWait, What::kTurn, number(rank));
      default:
        // Messages that came meanwhile.
        if (!rank.inbox.empty()) at(rank.inbox.front().arrives, What::kTurn, number(rank));
    }
  }

  // ---- mishaps, one at a time

  void mishap() {
    if (!ready_ || ailing_ || astray_ || lost_ || misconfigured_ || diverged_from_) return;
    if (std::ranges::any_of(ranks_, [](const Rank& rank) { return rank.is == Rank::Is::kGone; })) return;
    const size_t which = rng_.below(ranks_.size());
    Rank& rank = ranks_[which];
    switch (rng_.below(8)) {
      case 0:  // its process ends; where its host is cut off the front hears later than those who wait
        ++tally_.crashes;
        rank.is = Rank::Is::kGone;
        ail(which);
        return at(now_ + (rng_.below(2) == 0 ? random_time(microseconds(50), milliseconds(50)) : seconds(6)),
                  What::kFrontHears);
      case 1:  // and nobody hears
        ++tally_.hangs;
        rank.hangs = true;
        return ail(which);
      case 2:
        ++tally_.errors;
        rank.member.fail();
        return ends(rank);
      case 3:
        return go_astray(static_cast<Divergence>(rng_.below(kDivergences)));
      default:
        // Stalls that follow each other are not to add up to a silence.
        for (const Rank& other : ranks_) {
          if (other.stalled_until > now_ || (waits(other) && now_ - other.waits_since > seconds(1))) return;
        }
        ++tally_.stalls;
        rank.stalled_until = now_ + random_time(milliseconds(1), kLongestStall);
    }
  }
  void ail(size_t which) {
    ailing_ = which;
    ailing_since_ = now_;
    next_look_ = now_ + kLook;
  }
  // Its process says why and ends.
  void ends(Rank& rank) {
    rank.is = Rank::Is::kGone;
    if (rank.member.next() != StepMember::Next::kEnd) fail("a rank that has failed goes on");
    at(now_ + random_time(microseconds(50), milliseconds(50)), What::kFrontHears);
  }
  void look() {
    for (Rank& rank : ranks_) {
      if (!waits(rank)) continue;
      const Call& call = call_of(rank);
      missing_.clear();
      for (size_t other = 0; other < ranks_.size(); ++other) {
        if (!call.came[other]) missing_.push_back(static_cast<int>(other));
      }
      if (missing_.empty()) continue;  // it is about to go on
      const Wait wait{.group = "all",
                      .call = call.data ? "data" : "rows",
                      .waiting = static_cast<int>(number(rank)),
                      .missing = missing_,
                      .since = rank.waits_since};
      const auto left = time_left(wait, signs_, now_, kSilence, kSilence);
      if (left.ok()) {
        if (now_ - std::max(rank.waits_since, ailing_since_) > kSilence) fail("a rank that is missed is not found");
        continue;
      }
      if (left.error().message.find(fmt::format("no sign of rank {} for", *ailing_)) == std::string::npos) {
        return fail(fmt::format("rank {} ails, and this is said: {}", *ailing_, left.error().message));
      }
      if (std::exchange(missed_in_, life_) != life_) ++tally_.missed;
      rank.member.fail();
      ends(rank);
    }
  }

  // ---- at rest

  void check_rest() {
    if (!ready_) return fail("the instance does not serve again");
    for (size_t place = 0; place < requests_.size(); ++place) {
      if (!requests_[place].ended) return fail(fmt::format("nobody answers request {}", place));
    }
    for (const Rank& rank : ranks_) {
      const auto state = static_cast<int>(rank.member.next());
      if (rank.member.next() != StepMember::Next::kSleep || rank.is != Rank::Is::kListening || !rank.inbox.empty()) {
        return fail(fmt::format("rank {} rests in state {} with {} messages", number(rank), state, rank.inbox.size()));
      }
      // Each obeys all that concerns it, in order, and after the same exchange as the first rank.
      size_t obeyed = 0;
      for (size_t i = 0; i < asked_.size(); ++i) {
        if (!leads(number(rank)) && !concerns_followers(asked_[i])) continue;
        if (obeyed == rank.obeyed.size() || rank.obeyed[obeyed++] != ranks_[0].obeyed[i]) {
          return fail(fmt::format("rank {} does not obey control message {} with the others", number(rank), i));
        }
      }
    }
    if (tally_.found != tally_.diverged) fail("a rank that went astray was not found");
  }

  const Layout layout_;
  Rng rng_;
  const bool mixes_;
  Tally& tally_;
  TimePoint now_{seconds(1)};  // 0 is the time of a sign that was never given
  uint64_t orders_ = 0;
  std::priority_queue<Event, std::vector<Event>, std::greater<>> events_;
  uint64_t trace_ = 0xcbf29ce484222325;
  std::string failure_;

  // The front.
  WorkNumbers work_;
  std::vector<Request> requests_;
  size_t first_open_ = 0;
  std::vector<Control> asked_;  // of this life
  bool paused_ = false;
  uint64_t life_ = 0;
  bool ready_ = false, ending_ = false, starting_ = false;

  // The instance.
  std::vector<Rank> ranks_;
  std::vector<SignOfLife> signs_;
  std::deque<Call> calls_;
  int64_t first_call_ = 0;
  std::deque<Plan> plans_;

  std::optional<size_t> ailing_;  // this rank hangs, or has ended
  TimePoint ailing_since_, next_look_;
  std::vector<int> missing_;
  uint64_t missed_in_ = 0;                               // the life
  std::optional<std::pair<size_t, Divergence>> astray_;  // this rank will be
  std::optional<uint64_t> lost_;                         // the control message
  std::optional<size_t> misconfigured_;                  // this rank will be, in the next life
  std::optional<int64_t> diverged_from_;                 // the exchange
  size_t found_by_ = 0;                                  // ranks
};

Layout layout_of(uint64_t seed) {
  const int64_t sizes[] = {2, 3, 4, 6, 8, 16}, tp = sizes[seed % 6];
  return {.tp_size = tp, .dp_size = seed / 6 % 2 == 0 ? tp : nearest_divisors(tp, std::max<int64_t>(1, tp / 2))[0]};
}

int64_t from_environment(const char* name, int64_t otherwise) {
  const char* const value = std::getenv(name);
  return value == nullptr ? otherwise : std::atoll(value);
}

// SLUICE_SOAK_STEPS asks for so many steps, SLUICE_SOAK_SEED begins with the seed that failed.
TEST(StepSyncSimulation, NoWorkIsLostAndNobodySleepsForEverInAnyInterleaving) {
  Tally tally;
  const int64_t wanted = from_environment("SLUICE_SOAK_STEPS", 200'000);
  for (auto seed = static_cast<uint64_t>(from_environment("SLUICE_SOAK_SEED", 1)); tally.steps < wanted; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Simulation simulation(layout_of(seed), seed, tally);
    simulation.run_exchanges(500, /*mishaps=*/true);
    simulation.run_to_rest();
    ASSERT_EQ(simulation.failure(), "");
  }
  if (wanted >= 100'000) {
    for (const int64_t* often : {&tally.idle, &tally.extend, &tally.decode, &tally.mixed, &tally.steps, &tally.parks,
                                 &tally.requests, &tally.aborts, &tally.controls, &tally.pauses, &tally.stalls}) {
      EXPECT_GT(*often, 1000);
    }
    for (const int64_t* now_and_then : {&tally.crashes, &tally.hangs, &tally.errors, &tally.missed, &tally.diverged}) {
      EXPECT_GT(*now_and_then, 50);
    }
  }
  fmt::print(
      "{} exchanges, {} steps, {} parks; rows: {} idle, {} prefill, {} decode, {} mixed; {} requests, {} aborts, "
      "{} control messages, {} pauses; {} stalls, {} crashes, {} hangs, {} errors, {} times ranks missed one; {} "
      "went astray, {} were found\n",
      tally.exchanges, tally.steps, tally.parks, tally.idle, tally.extend, tally.decode, tally.mixed, tally.requests,
      tally.aborts, tally.controls, tally.pauses, tally.stalls, tally.crashes, tally.hangs, tally.errors, tally.missed,
      tally.diverged, tally.found);
}

// Pieces of work come at times that bring them before, into and after the moment at which the ranks park, and then all
// rest. SLUICE_SOAK_PARKS asks for more rounds.
TEST(StepSyncSimulation, NoRoundOfParkingAndWakingLosesAWakeUp) {
  Tally tally;
  const int64_t wanted = from_environment("SLUICE_SOAK_PARKS", 5'000);
  int64_t rests = 0;
  for (auto seed = static_cast<uint64_t>(from_environment("SLUICE_SOAK_SEED", 1)); tally.parks < wanted; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Simulation simulation(layout_of(seed), seed, tally);
    Rng rng(seed);
    for (int round = 0; round < 100; ++round, ++rests) {
      for (uint64_t pieces = 1 + rng.below(3); pieces > 0; --pieces) {
        rng.below(8) == 0 ? simulation.act() : simulation.send_request();
        simulation.run_for(microseconds(rng.below(1 << (8 + rng.below(11)))));
      }
      simulation.run_to_rest();
      ASSERT_EQ(simulation.failure(), "") << "round " << round;
    }
  }
  EXPECT_GE(tally.parks, rests) << "ranks that rest have parked";
}

TEST(StepSyncSimulation, ARankThatGoesAstrayIsFoundAtTheNextExchangeBeforeDataMove) {
  Tally tally;
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Simulation simulation(layout_of(seed), seed, tally);
    simulation.run_exchanges(static_cast<int64_t>(seed % 50), /*mishaps=*/false);
    simulation.go_astray(static_cast<Divergence>(seed % kDivergences));
    simulation.run_to_rest();
    ASSERT_EQ(simulation.failure(), "");
    ASSERT_EQ(tally.found, static_cast<int64_t>(seed));
  }
}

TEST(StepSyncSimulation, ASeedIsARun) {
  const auto trace = [](uint64_t seed) {
    Tally tally;
    Simulation simulation(layout_of(7), seed, tally);
    simulation.run_exchanges(1'000, /*mishaps=*/true);
    return simulation.trace();
  };
  EXPECT_EQ(trace(1), trace(1));
  EXPECT_NE(trace(1), trace(2));
}

}  // namespace
}  // namespace sluice::parallel
