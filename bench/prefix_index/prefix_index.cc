// Measures the prefix index (src/routing/prefix_index.h): operations per second, bytes, resident growth, and latency of
// look-ups while others write. What each case does stands above it; docs/results/prefix-index.md has the numbers.
//
// usage: prefix_index_bench [--runs N] [case...]     all cases, 5 runs of each, unless said otherwise
// Prints one row per figure: median, smallest and largest of the runs.
#include <fmt/format.h>
#include <pthread.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/rng.h"
#include "routing/prefix_index.h"

namespace sluice::routing {
namespace {

using SteadyClock = std::chrono::steady_clock;

double seconds_since(SteadyClock::time_point start) {
  return std::chrono::duration<double>(SteadyClock::now() - start).count();
}

// Processor time of a clock, in seconds.
double processor_time(clockid_t clock) {
  timespec time{};
  SLUICE_CHECK(clock_gettime(clock, &time) == 0, "no clock {}", clock);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

double resident_bytes() {
  std::ifstream statm("/proc/self/statm");
  double pages = 0, resident = 0;
  statm >> pages >> resident;
  return resident * static_cast<double>(sysconf(_SC_PAGESIZE));
}

double quantile(std::vector<double> values, double q) {
  SLUICE_CHECK(!values.empty(), "no values");
  const auto at = values.begin() + static_cast<ptrdiff_t>(q * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), at, values.end());
  return *at;
}

// Figures by name, in the order in which they first came; one value per run.
class Figures {
 public:
  void add(const std::string& name, double value, const char* unit) {
    for (Row& row : rows_) {
      if (row.name == name) return row.values.push_back(value);
    }
    rows_.push_back({name, unit, {value}});
  }
  void print() const {
    for (const Row& row : rows_) {
      const auto [low, high] = std::minmax_element(row.values.begin(), row.values.end());
      fmt::print("| {} | {:.4g} | {:.4g} .. {:.4g} | {} |\n", row.name, quantile(row.values, 0.5), *low, *high,
                 row.unit);
    }
    std::fflush(stdout);
  }

 private:
  struct Row {
    std::string name;
    const char* unit;
    std::vector<double> values;
  };
  std::vector<Row> rows_;
};

// Prompts by number: one of `groups` shared beginnings, 8 characters that no other number has, and filler. The same
// number always gives the same prompt, so millions of them need no memory.
class Prompts {
 public:
  Prompts(size_t bytes, size_t groups, size_t shared_bytes) : bytes_(bytes), groups_(groups), shared_(shared_bytes) {
    Rng rng(1);
    filler_.resize(16 << 20);
    for (char& c : filler_) c = static_cast<char>(' ' + rng.below(95));
  }

  void make(uint64_t number, std::string* out) const { make(number, bytes_, out); }
  void make(uint64_t number, size_t bytes, std::string* out) const {
    out->clear();
    if (groups_ > 0) out->append(slice(number % groups_, shared_));
    // An odd factor permutes all 48 bit numbers: they begin differently, and no two are equal.
    const uint64_t id = (number + 1) * 0x5851F42D4C957F2DULL;
    for (int i = 0; i < 8; ++i) out->push_back(static_cast<char>('0' + ((id >> (42 - 6 * i)) & 63)));
    out->append(slice(id, bytes - out->size()));
  }
  std::vector<std::string> chunk(size_t count, const std::function<uint64_t()>& next) const {
    std::vector<std::string> texts(count);
    for (auto& text : texts) make(next(), &text);
    return texts;
  }

 private:
  std::string_view slice(uint64_t key, size_t bytes) const {
    return std::string_view(filler_).substr(key * 0x9E3779B97F4A7C15ULL % (filler_.size() - bytes), bytes);
  }

  const size_t bytes_, groups_, shared_;
  std::string filler_;
};

// The same for the same prompt: one of 8.
uint32_t worker_of(std::string_view text) { return static_cast<uint32_t>(text.back()) % 8; }

// Every figure is of texts made beforehand, a chunk at a time, and an insert counts once it is applied.
struct Speed {
  const Prompts& prompts;
  PrefixIndex& index;
  uint64_t entries;
  size_t chunk_size;

  double fresh_inserts(uint64_t from, uint64_t to) const {
    double seconds = 0;
    for (uint64_t next = from; next < to;) {
      const auto texts = prompts.chunk(std::min<uint64_t>(chunk_size, to - next), [&] { return next++; });
      const auto start = SteadyClock::now();
      for (size_t i = 0; i < texts.size(); ++i) index.insert(texts[i], worker_of(texts[i]));
      index.flush();
      seconds += seconds_since(start);
    }
    return seconds;
  }
  // Each thread does `chunks` chunks of its own entries, drawn at random; `operation` gets a text. Operations per
  // second of one operation per text.
  double per_second(int threads, int chunks, const std::function<void(const std::string&)>& operation) const {
    double seconds = 0;
    for (int c = 0; c < chunks; ++c) {
      std::vector<std::vector<std::string>> texts;
      for (int t = 0; t < threads; ++t) {
        Rng rng(static_cast<uint64_t>(c * threads + t));
        texts.push_back(prompts.chunk(chunk_size, [&] { return rng.below(entries); }));
      }
      std::atomic<int> ready{0};
      std::atomic<bool> go{false};
      std::vector<std::thread> others;
      const auto work = [&](int t) {
        for (const std::string& text : texts[static_cast<size_t>(t)]) operation(text);
      };
      for (int t = 1; t < threads; ++t) {
        others.emplace_back([&, t] {
          ++ready;
          while (!go) std::this_thread::yield();
          work(t);
        });
      }
      while (ready < threads - 1) std::this_thread::yield();
      const auto start = SteadyClock::now();
      go = true;
      work(0);
      for (auto& other : others) other.join();
      index.flush();
      seconds += seconds_since(start);
    }
    return static_cast<double>(chunk_size) * threads * chunks / seconds;
  }

  void run(const std::string& name, int chunks, Figures* figures) const {
    const auto match = [&](const std::string& text) {
      const PrefixMatch found = index.match(text);
      SLUICE_CHECK(found.matched_bytes == text.size() && found.num_holders > 0, "{} of {} bytes found",
                   found.matched_bytes, text.size());
    };
    const auto insert = [&](const std::string& text) { index.insert(text, worker_of(text)); };
    const auto both = [&](const std::string& text) { match(text), insert(text); };
    figures->add(name + ": matches, 1 thread", per_second(1, chunks, match) / 1e6, "M/s");
    figures->add(name + ": inserts of known prompts, 1 thread", per_second(1, chunks, insert) / 1e6, "M/s");
    figures->add(name + ": mixed (a match, an insert, ...), 1 thread", 2 * per_second(1, chunks, both) / 1e6, "M/s");
    figures->add(name + ": matches, 2 threads", per_second(2, chunks, match) / 1e6, "M/s");
    figures->add(name + ": mixed, 2 threads", 2 * per_second(2, chunks, both) / 1e6, "M/s");
    SLUICE_CHECK(index.stats().dropped_inserts == 0, "{} inserts were dropped", index.stats().dropped_inserts);
  }
};

// 10 000 entries of 256 bytes that share nothing.
void small(Figures* figures) {
  const Prompts prompts(256, 0, 0);
  const uint64_t entries = 10'000;
  double seconds = 0;
  const int builds = 20;
  for (int i = 0; i < builds; ++i) {
    PrefixIndex index({});
    seconds += Speed{prompts, index, entries, entries}.fresh_inserts(0, entries);
  }
  figures->add("small: inserts of new prompts, 1 thread", static_cast<double>(entries) * builds / seconds / 1e6, "M/s");

  PrefixIndex index({});
  const size_t empty = index.stats().bytes;
  const Speed speed{prompts, index, entries, entries};
  speed.fresh_inserts(0, entries);
  const auto bytes = static_cast<double>(index.stats().bytes - empty);
  figures->add("small: bytes per inserted prompt", bytes / static_cast<double>(entries), "bytes");
  speed.run("small", 50, figures);
}

// 1 000 000 entries of 2 KB: 64 beginnings of 1.5 KB are shared; a budget of 1 GiB.
void large(Figures* figures) {
  const Prompts prompts(2048, 64, 1536);
  const uint64_t entries = 1'000'000;
  const size_t budget = size_t{1} << 30;
  const double resident = resident_bytes();
  PrefixIndex index({.budget_bytes = budget, .max_bytes_per_worker = budget});
  const Speed speed{prompts, index, entries, 2'000};
  const double seconds = speed.fresh_inserts(0, entries);
  const PrefixIndexStats stats = index.stats();
  SLUICE_CHECK(stats.evictions_budget == 0, "{} entries do not fit", entries);
  const double distinct = 64 * 1536 + static_cast<double>(entries) * 512;
  figures->add("large: inserts of new prompts, 1 thread", static_cast<double>(entries) / seconds / 1e6, "M/s");
  figures->add("large: bytes per inserted prompt", static_cast<double>(stats.bytes) / static_cast<double>(entries),
               "bytes");
  figures->add("large: accounted bytes per byte of distinct prompt", static_cast<double>(stats.bytes) / distinct, "");
  figures->add("large: resident bytes per byte of distinct prompt", (resident_bytes() - resident) / distinct, "");
  speed.run("large", 100, figures);
}

// Memory beyond the text: per node, and per further holder of a node.
void nodes(Figures* figures) {
  struct Case {
    const char* name;
    Prompts prompts;
    uint64_t entries;
  };
  const Case cases[] = {{"small", Prompts(256, 0, 0), 10'000}, {"large", Prompts(2048, 64, 1536), 100'000}};
  for (const Case& c : cases) {
    const size_t budget = size_t{1} << 30;
    PrefixIndex index({.budget_bytes = budget, .max_bytes_per_worker = budget});
    const PrefixIndexStats empty = index.stats();
    std::string text;
    size_t text_bytes = 0;
    const auto insert_all = [&](uint32_t worker) {
      for (uint64_t n = 0; n < c.entries; ++n) {
        c.prompts.make(n, &text);
        index.insert(text, worker);
        if (worker == 0) {
          index.flush();  // so that the next one knows what is shared
          // What is new to the tree is what the insert adds as text.
          std::string next;
          if (n + 1 < c.entries) {
            c.prompts.make(n + 1, &next);
            text_bytes += next.size() - index.match(next).matched_bytes;
          }
          if (n == 0) text_bytes += text.size();
        } else if (n % 1000 == 0) {
          index.flush();
        }
      }
      index.sweep();  // nothing waits for its readers
      index.flush();
    };
    insert_all(0);
    const PrefixIndexStats one = index.stats();
    const auto count = static_cast<double>(one.nodes - empty.nodes);
    figures->add(fmt::format("{}: bytes per node beyond the text", c.name),
                 static_cast<double>(one.bytes - empty.bytes - text_bytes) / count, "bytes");
    figures->add(fmt::format("{}: bytes per prompt beyond its text", c.name),
                 static_cast<double>(one.bytes - empty.bytes - text_bytes) / static_cast<double>(c.entries), "bytes");
    for (uint32_t holders = 2; holders <= 32; ++holders) {
      insert_all(holders - 1);
      if (holders != 2 && holders != 8 && holders != 32) continue;
      figures->add(fmt::format("{}: bytes per further holder of a node, {} holders", c.name, holders),
                   static_cast<double>(index.stats().bytes - one.bytes) / count / (holders - 1), "bytes");
    }
  }
}

// 200 times the budget in distinct bytes goes through: prompts of 100 bytes to 64 KB that share nothing.
void growth(Figures* figures) {
  const size_t budget = 256 << 20;
  const Prompts prompts(256, 0, 0);
  const auto length = [](uint64_t number) {
    return static_cast<size_t>(100 * std::exp2(Rng(number).uniform() * std::log2(655.36)));
  };
  const double resident = resident_bytes();
  double resident_most = 0;
  size_t accounted_most = 0;
  PrefixIndex index({.budget_bytes = budget, .max_bytes_per_worker = budget});
  std::string text;
  uint64_t number = 0;
  size_t through = 0, next_look = 0;
  const auto start = SteadyClock::now();
  for (; through < 200 * budget; ++number) {
    prompts.make(number, length(number), &text);
    index.insert(text, worker_of(text));
    through += text.size();
    if (through < next_look) continue;
    next_look = through + (2 << 20);
    accounted_most = std::max(accounted_most, index.stats().bytes);
    index.flush();
    resident_most = std::max(resident_most, resident_bytes() - resident);
  }
  index.flush();
  const double seconds = seconds_since(start);
  // Nothing was used twice: what is left are the newest.
  size_t left = 0;
  while (number-- > 0) {
    prompts.make(number, length(number), &text);
    if (index.match(text).matched_bytes < text.size()) break;
    left += text.size();
  }
  const PrefixIndexStats stats = index.stats();
  const auto b = static_cast<double>(budget);
  figures->add("growth: accounted bytes at most, of the budget", static_cast<double>(accounted_most) / b, "");
  figures->add("growth: resident growth at most, of the budget", resident_most / b, "");
  figures->add("growth: resident bytes per byte of prompt held in the end", resident_most / static_cast<double>(left),
               "");
  figures->add("growth: distinct bytes through", static_cast<double>(through) / seconds / 1e9, "GB/s");
  figures->add("growth: dropped inserts", static_cast<double>(stats.dropped_inserts), "");
}

// A thread that inserts at a rate, a millisecond's share at a time.
class Writer {
 public:
  Writer(PrefixIndex& index, size_t per_ms, std::function<const std::string&()> next)
      : thread_([this, &index, per_ms, next = std::move(next)] {
          auto due = SteadyClock::now();
          for (uint64_t n = 0; !stop_.load(std::memory_order_relaxed); due += std::chrono::milliseconds(1)) {
            for (size_t i = 0; i < per_ms; ++i, ++n) {
              const std::string& text = next();
              index.insert(text, worker_of(text));
            }
            written_.store(n, std::memory_order_relaxed);
            std::this_thread::sleep_until(due);
          }
        }) {}
  ~Writer() {
    stop_ = true;
    thread_.join();
  }
  uint64_t written() const { return written_.load(std::memory_order_relaxed); }
  clockid_t clock() {
    clockid_t clock{};
    SLUICE_CHECK(pthread_getcpuclockid(thread_.native_handle(), &clock) == 0, "a thread without a clock");
    return clock;
  }

 private:
  std::atomic<bool> stop_{false};
  std::atomic<uint64_t> written_{0};
  std::thread thread_;
};

// Latencies in nanoseconds of `count` matches of what `next` gives: 20 each millisecond, and asleep between.
std::vector<double> latencies(const PrefixIndex& index, size_t count, const std::function<const std::string&()>& next) {
  std::vector<double> result;
  result.reserve(count);
  auto due = SteadyClock::now();
  for (size_t i = 0; i < count; ++i) {
    if (i % 20 == 0) std::this_thread::sleep_until(due += std::chrono::milliseconds(1));
    const std::string& text = next();
    const auto start = SteadyClock::now();
    const PrefixMatch match = index.match(text);
    result.push_back(seconds_since(start) * 1e9);
    SLUICE_CHECK(match.total_bytes == text.size(), "not the match of this text");
  }
  return result;
}

struct Mode {
  std::string name;
  std::function<const std::string&()> write;  // none: nobody writes
};

// What the index thread does beside a writer and the calling thread, which looks up: claims that were applied, and its
// processor time, which is what is left of the process.
struct IndexThread {
  double applied = 0, seconds = 0;

  static IndexThread now(const PrefixIndex& index, Writer& writer) {
    return {static_cast<double>(index.stats().inserts), processor_time(CLOCK_PROCESS_CPUTIME_ID) -
                                                            processor_time(CLOCK_THREAD_CPUTIME_ID) -
                                                            processor_time(writer.clock())};
  }
};

// Modes by turns, so that what else the machine does meets all of them: p50 and p99 of each, and the ratio of each p99
// to the first mode's of the same turn.
void by_turns(const std::string& name, PrefixIndex& index, size_t writes_per_ms, const std::vector<Mode>& modes,
              const std::function<const std::string&()>& next, Figures* figures) {
  std::vector<double> p99s;
  for (const Mode& mode : modes) {
    index.flush();
    const PrefixIndexStats earlier = index.stats();
    std::vector<double> all;
    double rate = 0, applied_rate = 0, seconds_per_claim = 0;
    {
      std::unique_ptr<Writer> writer;
      if (mode.write) writer = std::make_unique<Writer>(index, writes_per_ms, mode.write);
      latencies(index, 2'000, next);  // warms up
      const uint64_t before = writer ? writer->written() : 0;
      const IndexThread thread_before = writer ? IndexThread::now(index, *writer) : IndexThread{};
      const auto start = SteadyClock::now();
      all = latencies(index, 20'000, next);
      if (writer) {
        const double took = seconds_since(start);
        const IndexThread thread_after = IndexThread::now(index, *writer);
        rate = static_cast<double>(writer->written() - before) / took;
        applied_rate = (thread_after.applied - thread_before.applied) / took;
        seconds_per_claim =
            (thread_after.seconds - thread_before.seconds) / (thread_after.applied - thread_before.applied);
      }
    }
    const double p99 = quantile(all, 0.99);
    figures->add(fmt::format("{}: match p50, {}", name, mode.name), quantile(all, 0.5), "ns");
    figures->add(fmt::format("{}: match p99, {}", name, mode.name), p99, "ns");
    for (size_t i = 0; i < p99s.size(); ++i) {
      figures->add(fmt::format("{}: p99 {} / {}", name, mode.name, modes[i].name), p99 / p99s[i], "");
    }
    p99s.push_back(p99);
    index.flush();
    if (mode.write) {
      figures->add(fmt::format("{}: writes, {}", name, mode.name), rate / 1e6, "M/s");
      figures->add(fmt::format("{}: writes applied, {}", name, mode.name), applied_rate / 1e6, "M/s");
      figures->add(fmt::format("{}: index thread for each, {}", name, mode.name), seconds_per_claim * 1e6, "us");
      const PrefixIndexStats stats = index.stats();
      const auto dropped = static_cast<double>(stats.dropped_inserts - earlier.dropped_inserts);
      const auto applied = static_cast<double>(stats.inserts - earlier.inserts);
      figures->add(fmt::format("{}: writes dropped, {}", name, mode.name), 100 * dropped / (dropped + applied), "%");
    }
  }
}

// A full index of 256 MiB with prompts of 2 KB (64 shared beginnings of 1.5 KB), 50 000 inserts/s, 20 000 matches/s of
// prompts among the newest half: while known prompts are inserted, and while new ones are, each evicting another.
void evicting(int turns, Figures* figures) {
  const Prompts prompts(2048, 64, 1536);
  PrefixIndex index({.max_bytes_per_worker = size_t{1} << 30});
  std::string made, written, asked;
  uint64_t newest = 0;
  while (index.stats().evictions_budget == 0) {
    for (int i = 0; i < 1000; ++i) {
      prompts.make(newest++, &made);
      index.insert(made, worker_of(made));
    }
    index.flush();
  }
  const uint64_t half = index.stats().nodes / 4;  // some nodes are inner ones
  std::atomic<uint64_t> end{newest};
  Rng reader_rng(1), writer_rng(2);
  const auto some = [&](Rng& rng, std::string* text) -> const std::string& {
    prompts.make(end.load(std::memory_order_relaxed) - 2'000 - rng.below(half), text);
    return *text;
  };
  const std::vector<Mode> modes = {
      {"nobody writes", {}},
      {"known prompts", [&]() -> const std::string& { return some(writer_rng, &written); }},
      {"evicting", [&]() -> const std::string& {
         prompts.make(end.fetch_add(1, std::memory_order_relaxed), &written);
         return written;
       }}};
  for (int turn = 0; turn < turns; ++turn) {
    by_turns(
        "evicting", index, 50, modes, [&]() -> const std::string& { return some(reader_rng, &asked); }, figures);
  }
}

// 1 M writes/s during 20 000 matches/s, prompts of 256 bytes: claims on 10 000 known prompts, and new prompts, each
// evicting another from a full index of 256 MiB.
void events(int turns, Figures* figures) {
  const Prompts prompts(256, 0, 0);
  PrefixIndex index({.max_bytes_per_worker = size_t{1} << 30});
  std::string made, asked;
  const uint64_t known = 10'000;
  const auto texts = [&] {
    uint64_t next = 0;
    return prompts.chunk(known, [&] { return next++; });
  }();
  uint64_t newest = known;
  const auto known_again = [&] {
    for (uint64_t n = 0; n < known; ++n) index.insert(texts[n], worker_of(texts[n]));
    index.flush();
  };
  while (index.stats().evictions_budget == 0) {
    for (int i = 0; i < 1000; ++i) {
      prompts.make(newest++, &made);
      index.insert(made, worker_of(made));
    }
    index.flush();
  }
  known_again();
  Rng rng(1);
  uint64_t n = 0;
  const std::vector<Mode> modes = {{"nobody writes", {}},
                                   {"known prompts", [&]() -> const std::string& { return texts[n++ % known]; }},
                                   {"new prompts, evicting", [&]() -> const std::string& {
                                      // Known ones now and then, so that they stay; making the text is part of the
                                      // writer's time.
                                      if (newest++ % 8 == 0) return texts[n++ % known];
                                      prompts.make(newest, &made);
                                      return made;
                                    }}};
  for (int turn = 0; turn < turns; ++turn) {
    by_turns(
        "events", index, 1'000, modes, [&]() -> const std::string& { return texts[rng.below(known)]; }, figures);
    known_again();
  }
}

int main_or_usage(int argc, char** argv) {
  const std::vector<std::pair<std::string, std::function<void(int, Figures*)>>> cases = {
      {"small",
       [](int runs, Figures* f) {
         while (runs-- > 0) small(f);
       }},
      {"large",
       [](int runs, Figures* f) {
         while (runs-- > 0) large(f);
       }},
      {"nodes", [](int, Figures* f) { nodes(f); }},  // counts: every run gives the same
      {"growth",
       [](int runs, Figures* f) {
         while (runs-- > 0) growth(f);
       }},
      {"evicting", [](int runs, Figures* f) { evicting(3 * runs, f); }},
      {"events", [](int runs, Figures* f) { events(3 * runs, f); }}};
  int runs = 5;
  std::vector<std::string> wanted;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--runs" && i + 1 < argc) {
      runs = std::max(1, std::atoi(argv[++i]));
    } else if (std::any_of(cases.begin(), cases.end(), [&](const auto& c) { return c.first == argument; })) {
      wanted.push_back(argument);
    } else {
      fmt::print(stderr, "usage: {} [--runs N] [small|large|nodes|growth|evicting|events ...]\n", argv[0]);
      return 2;
    }
  }
  fmt::print("| figure | median | range | unit |\n|---|---|---|---|\n");
  for (const auto& [name, run] : cases) {
    if (!wanted.empty() && std::find(wanted.begin(), wanted.end(), name) == wanted.end()) continue;
    Figures figures;
    run(runs, &figures);
    figures.print();
  }
  return 0;
}

}  // namespace
}  // namespace sluice::routing

int main(int argc, char** argv) { return sluice::routing::main_or_usage(argc, argv); }
