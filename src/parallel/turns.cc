#include "parallel/turns.h"

#include <pthread.h>

#include <exception>
#include <utility>

namespace sluice::parallel {

uint64_t Turns::queue() {
  const std::lock_guard lock(mu_);
  return next_++;
}

void Turns::take(uint64_t place) {
  std::unique_lock lock(mu_);
  changed_.wait(lock, [&] { return serving_ == place; });
  since_ = clock_.now();
}

void Turns::give() {
  const std::lock_guard lock(mu_);
  give_locked();
}

void Turns::give_locked() {
  computed_ += clock_.now() - *std::exchange(since_, std::nullopt);
  ++serving_;
  if (next_ > serving_ || mark_ > 0) changed_.notify_all();
}

void Turns::yield() {
  const uint64_t place = queue();
  give();
  take(place);
}

Turns::Marks Turns::marks() const {
  const TimePoint now = clock_.now();
  return {now, computed_ + (since_ ? now - *since_ : Duration{})};
}

Turns::Marks Turns::leave() {
  const std::lock_guard lock(mu_);
  give_locked();
  return marks();
}

void Turns::come_back(const Marks& left) {
  {
    const std::lock_guard lock(mu_);
    const Marks now = marks();
    times_.away += now.when - left.when;
    times_.covered += now.computed - left.computed;
  }
  take();
}

Turns::Times Turns::times() const {
  const std::lock_guard lock(mu_);
  return times_;
}

void Turns::reach(int64_t mark) {
  const std::lock_guard lock(mu_);
  mark_ = mark;
}

void Turns::wait_for(int64_t mark) {
  std::unique_lock lock(mu_);
  if (mark_ >= mark) return;
  give_locked();
  changed_.wait(lock, [&] { return mark_ >= mark; });
  lock.unlock();
  take();
}

Strand::~Strand() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(mu_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void Strand::begin(std::function<Result<void>()> work) {
  // Before there is a place in the queue: nobody would take it if there can be no thread.
  if (!thread_.joinable()) {
    thread_ = std::thread([this] {
      ::pthread_setname_np(::pthread_self(), "sluice-strand");
      run();
    });
  }
  {
    const std::lock_guard lock(mu_);
    work_ = std::move(work);
    place_ = turns_.queue();
    result_.reset();
  }
  changed_.notify_all();
}

Result<void> Strand::end() {
  turns_.give();
  std::unique_lock lock(mu_);
  changed_.wait(lock, [&] { return result_.has_value(); });
  Result<void> result = *std::exchange(result_, std::nullopt);
  lock.unlock();
  turns_.take();
  return result;
}

void Strand::run() {
  std::unique_lock lock(mu_);
  while (true) {
    changed_.wait(lock, [&] { return stopping_ || work_; });
    if (stopping_) return;
    const std::function<Result<void>()> work = std::exchange(work_, nullptr);
    const uint64_t place = place_;
    lock.unlock();
    turns_.take(place);
    Result<void> result;
    try {
      result = work();
    } catch (const std::exception& e) {  // no memory, most of all
      result = Error{ErrorCode::kInternal, e.what()};
    }
    turns_.give();
    lock.lock();
    result_ = std::move(result);
    changed_.notify_all();
  }
}

namespace {

class GivingTurns final : public Communicator {
 public:
  GivingTurns(std::unique_ptr<Communicator> inner, Turns& turns)
      : Communicator(inner->name(), inner->rank(), {inner->world_ranks().begin(), inner->world_ranks().end()}),
        inner_(std::move(inner)),
        turns_(turns) {}

  void progress(const Progress& progress) override { inner_->progress(progress); }
  Progress last_progress(int rank) const override { return inner_->last_progress(rank); }
  void abort(std::string_view reason) override { inner_->abort(reason); }
  std::optional<Error> failure() const override { return inner_->failure(); }

  Result<void> run(const Collective& call) override {
    const uint64_t before = inner_->received_bytes();
    auto result = turns_.while_away([&] { return inner_->run(call); });
    count_received(inner_->received_bytes() - before);
    return result;
  }

  Result<void*> host_buffer(size_t bytes) override { return inner_->host_buffer(bytes); }
  Result<std::shared_ptr<std::byte>> common_memory(size_t bytes) override {
    return turns_.while_away([&] { return inner_->common_memory(bytes); });
  }

  Result<std::unique_ptr<Communicator>> subgroup(std::span<const int> members, int index,
                                                 std::string_view name) override {
    SLUICE_TRY(auto inner, turns_.while_away([&] { return inner_->subgroup(members, index, name); }));
    return inner ? give_turns(std::move(inner), turns_) : nullptr;
  }

 private:
  const std::unique_ptr<Communicator> inner_;
  Turns& turns_;
};

}  // namespace

std::unique_ptr<Communicator> give_turns(std::unique_ptr<Communicator> inner, Turns& turns) {
  return std::make_unique<GivingTurns>(std::move(inner), turns);
}

}  // namespace sluice::parallel
