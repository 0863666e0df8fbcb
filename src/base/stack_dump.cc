#include "base/stack_dump.h"

#include <cxxabi.h>
#include <elf.h>
#include <execinfo.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <span>
#include <sstream>
#include <string_view>

#include "base/result.h"

namespace sluice {
namespace {

StackBoard* board_of_this_process = nullptr;

void leave_stack(int) {
  // The handler's own frame, and that of the return from it.
  constexpr int kOwn = 2;
  void* pcs[StackBoard::kFrames + kOwn];
  const int n = ::backtrace(pcs, static_cast<int>(std::size(pcs)));
  const uint32_t at = board_of_this_process->threads.fetch_add(1);
  if (at < StackBoard::kThreads && n > kOwn) {
    auto& to = board_of_this_process->thread[at];
    to.id.store(static_cast<int32_t>(::syscall(SYS_gettid)));
    for (int i = kOwn; i < n; ++i) to.pcs[i - kOwn].store(reinterpret_cast<uint64_t>(pcs[i]));
    to.frames.store(static_cast<uint32_t>(n - kOwn));
  }
  for (;;) ::pause();
}

// A file in memory, read-only.
class Mapped {
 public:
  explicit Mapped(const std::string& path) {
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) return;
    struct stat status;
    if (::fstat(fd, &status) == 0 && status.st_size > 0) {
      void* base = ::mmap(nullptr, static_cast<size_t>(status.st_size), PROT_READ, MAP_PRIVATE, fd, 0);
      if (base != MAP_FAILED) bytes_ = {static_cast<const char*>(base), static_cast<size_t>(status.st_size)};
    }
    ::close(fd);
  }
  ~Mapped() {
    if (!bytes_.empty()) ::munmap(const_cast<char*>(bytes_.data()), bytes_.size());
  }
  Mapped(const Mapped&) = delete;
  Mapped& operator=(const Mapped&) = delete;

  // `count` of T at `offset`; none where the file is shorter.
  template <class T>
  std::span<const T> at(uint64_t offset, uint64_t count = 1) const {
    if (offset > bytes_.size() || count > (bytes_.size() - offset) / sizeof(T)) return {};
    return {reinterpret_cast<const T*>(bytes_.data() + offset), static_cast<size_t>(count)};
  }
  std::string text(uint64_t offset) const {
    if (offset >= bytes_.size()) return {};
    const auto* begin = bytes_.data() + offset;
    return {begin, ::strnlen(begin, bytes_.size() - offset)};
  }

 private:
  std::span<const char> bytes_;
};

// The functions of an ELF file, those of its full table where it was not stripped.
class Symbols {
 public:
  explicit Symbols(const std::string& path) : file_(path) {
    const auto head = file_.at<Elf64_Ehdr>(0);
    if (head.empty() || !std::equal(ELFMAG, ELFMAG + SELFMAG, head[0].e_ident)) return;
    segments_ = file_.at<Elf64_Phdr>(head[0].e_phoff, head[0].e_phnum);
    const auto sections = file_.at<Elf64_Shdr>(head[0].e_shoff, head[0].e_shnum);
    for (const auto wanted : {SHT_SYMTAB, SHT_DYNSYM}) {
      for (const Elf64_Shdr& section : sections) {
        if (section.sh_type != static_cast<uint32_t>(wanted) || section.sh_link >= sections.size()) continue;
        symbols_ = file_.at<Elf64_Sym>(section.sh_offset, section.sh_size / sizeof(Elf64_Sym));
        names_ = sections[section.sh_link].sh_offset;
        return;
      }
    }
  }

  // Of the function that has the byte at this offset of the file; empty: not known.
  std::string name(uint64_t offset) const {
    const auto segment = std::ranges::find_if(segments_, [&](const Elf64_Phdr& s) {
      return s.p_type == PT_LOAD && offset >= s.p_offset && offset - s.p_offset < s.p_filesz;
    });
    if (segment == segments_.end()) return {};
    const uint64_t address = segment->p_vaddr + (offset - segment->p_offset);
    for (const Elf64_Sym& symbol : symbols_) {
      if (ELF64_ST_TYPE(symbol.st_info) != STT_FUNC || symbol.st_shndx == SHN_UNDEF) continue;
      if (address >= symbol.st_value && address - symbol.st_value < symbol.st_size) {
        return readable(file_.text(names_ + symbol.st_name));
      }
    }
    return {};
  }

 private:
  static std::string readable(const std::string& mangled) {
    int status = 0;
    const std::unique_ptr<char, decltype(&std::free)> text(
        abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status), &std::free);
    if (status != 0 || !text) return mangled;
    std::string name = text.get();
    constexpr std::string_view kAnonymous = "(anonymous namespace)::";
    for (size_t at; (at = name.find(kAnonymous)) != std::string::npos;) name.erase(at, kAnonymous.size());
    return name.substr(0, name.find('('));  // arguments make a line unreadable
  }

  Mapped file_;
  std::span<const Elf64_Phdr> segments_;
  std::span<const Elf64_Sym> symbols_;
  uint64_t names_ = 0;
};

struct Mapping {
  uint64_t begin = 0, end = 0, offset = 0;
  std::string file;
};

std::vector<Mapping> mappings_of(pid_t process) {
  std::vector<Mapping> out;
  std::ifstream maps(fmt::format("/proc/{}/maps", process));
  for (std::string line; std::getline(maps, line);) {
    Mapping m;
    std::string range, mode, device, inode;
    std::istringstream fields(line);
    fields >> range >> mode >> std::hex >> m.offset >> device >> inode >> m.file;
    const size_t dash = range.find('-');
    if (dash == std::string::npos || mode.find('x') == std::string::npos) continue;
    m.begin = std::strtoull(range.c_str(), nullptr, 16);
    m.end = std::strtoull(range.c_str() + dash + 1, nullptr, 16);
    out.push_back(std::move(m));
  }
  return out;
}

std::string thread_name(pid_t process, int32_t thread) {
  std::ifstream file(fmt::format("/proc/{}/task/{}/comm", process, thread));
  std::string name;
  std::getline(file, name);
  return name.empty() ? "?" : name;
}

}  // namespace

void leave_stacks_in(StackBoard& board) {
  board_of_this_process = &board;
  // Its first call allocates.
  void* pc;
  (void)::backtrace(&pc, 1);
  struct sigaction action {};
  action.sa_handler = leave_stack;
  action.sa_flags = SA_RESTART;
  ::sigfillset(&action.sa_mask);
  ::sigaction(SIGUSR2, &action, nullptr);
}

void ask_for_stacks(pid_t process, StackBoard& board) {
  board.threads.store(0);
  for (auto& thread : board.thread) thread.frames.store(0);
  std::error_code none;
  for (const auto& entry : std::filesystem::directory_iterator(fmt::format("/proc/{}/task", process), none)) {
    ::syscall(SYS_tgkill, process, std::atoi(entry.path().filename().c_str()), SIGUSR2);
  }
  ::kill(process, SIGCONT);
}

std::vector<std::string> left_stacks(pid_t process, const StackBoard& board) {
  const auto mappings = mappings_of(process);
  std::map<std::string, Symbols> files;
  const auto function = [&](uint64_t pc) -> std::string {
    const auto found = std::ranges::find_if(mappings, [&](const Mapping& m) { return pc >= m.begin && pc < m.end; });
    if (found == mappings.end()) return fmt::format("{:#x}", pc);
    const uint64_t offset = pc - found->begin + found->offset;
    // The address is where the function goes on; the call before it may be its last instruction.
    std::string name = files.try_emplace(found->file, found->file).first->second.name(offset - 1);
    if (!name.empty()) return name;
    return fmt::format("{}+{:#x}", found->file.substr(found->file.rfind('/') + 1), offset);
  };
  std::vector<std::string> lines;
  for (const auto& thread : board.thread) {
    const size_t frames = std::min<size_t>(thread.frames.load(), StackBoard::kFrames);
    if (frames == 0) continue;
    std::string line = fmt::format("thread {}: ", thread_name(process, thread.id.load()));
    for (size_t i = 0; i < frames; ++i) line += (i == 0 ? "" : " < ") + function(thread.pcs[i].load());
    lines.push_back(std::move(line));
  }
  return lines;
}

}  // namespace sluice
