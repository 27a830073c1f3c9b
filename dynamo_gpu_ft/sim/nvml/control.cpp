// Listens for commands from other processes: a file of lines that everybody follows, and a socket of this process that
// answers. Both lie in the folder FAKE_NVML_CONTROL: `commands`, and `<pid>.sock` for each process that has called nvmlInit.
#include <fcntl.h>
#include <poll.h>
#include <sys/inotify.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <thread>
#include <utility>

#include "world.h"

namespace sim {
namespace {

constexpr size_t kMaxLine = 4096, kMaxClients = 64;
constexpr int kWithoutInotifyMs = 50;

struct Listener {
  std::string path;
  uint64_t done = 0;  // bytes of the file that were executed
  std::string wrong;  // what lines of the file were refused for, until somebody asks
  int watch = -1, socket = -1;
  std::map<int, std::string> clients;  // what each has sent so far

  // Executes whole lines from where it stopped; a file that became shorter is a new one.
  void follow(bool replay) {
    int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (file < 0) return;
    struct stat status;
    if (fstat(file, &status) == 0 && static_cast<uint64_t>(status.st_size) < done) done = 0;
    std::string text;
    char part[4096];
    for (ssize_t got; (got = pread(file, part, sizeof part, static_cast<off_t>(done + text.size()))) > 0;)
      text.append(part, static_cast<size_t>(got));
    close(file);
    for (size_t end; (end = text.find('\n')) != std::string::npos; text.erase(0, end + 1)) {
      std::string answer;
      done += end + 1;
      if (command(text.substr(0, end), &answer, replay)) continue;
      std::fprintf(stderr, "fake NVML: %s: %s\n", path.c_str(), answer.c_str());
      wrong += answer + "\n";
    }
  }

  void answer(int client, std::string &heard) {
    for (size_t end; (end = heard.find('\n')) != std::string::npos; heard.erase(0, end + 1)) {
      const std::string line = heard.substr(0, end);
      std::string said;
      bool good = true;
      if (line.rfind("sync", 0) == 0)
        follow(false), good = wrong.empty(), said = good ? std::to_string(done) : std::exchange(wrong, "");
      else
        good = command(line, &said);
      said = (good ? "ok " : "error ") + said + "\n.\n";
      (void)!send(client, said.data(), said.size(), MSG_NOSIGNAL);
    }
  }

  void run() {
    for (;;) {
      std::vector<struct pollfd> waiting = {{watch, POLLIN, 0}, {socket, POLLIN, 0}};
      for (auto &[client, heard] : clients) waiting.push_back({client, POLLIN, 0});
      if (poll(waiting.data(), waiting.size(), watch < 0 ? kWithoutInotifyMs : -1) < 0) continue;
      if (waiting[0].revents & POLLIN) {
        alignas(struct inotify_event) char events[4096];
        (void)!read(watch, events, sizeof events);
      }
      follow(false);
      if (waiting[1].revents & POLLIN) {
        int client = accept4(socket, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (client >= 0 && clients.size() >= kMaxClients)
          close(client);
        else if (client >= 0)
          clients[client];
      }
      for (size_t i = 2; i < waiting.size(); ++i) {
        if (!waiting[i].revents) continue;
        char part[4096];
        const ssize_t got = recv(waiting[i].fd, part, sizeof part, 0);
        std::string &heard = clients[waiting[i].fd];
        if (got > 0) heard.append(part, static_cast<size_t>(got)), answer(waiting[i].fd, heard);
        if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR) || heard.size() > kMaxLine) {
          close(waiting[i].fd);
          clients.erase(waiting[i].fd);
        }
      }
    }
  }
};

Listener *listener = nullptr;

// Removed at the end of the process, and only by the process that made it.
struct Own {
  pid_t pid = 0;
  char path[108] = "";
} own;
void remove_own() {
  if (own.path[0] && own.pid == getpid()) unlink(own.path);
}

int listening(const std::string &path) {
  struct sockaddr_un name = {};
  name.sun_family = AF_UNIX;
  if (path.size() >= sizeof name.sun_path) {
    std::fprintf(stderr, "fake NVML: %s is too long for a socket; only the file is followed\n", path.c_str());
    return -1;
  }
  std::memcpy(name.sun_path, path.c_str(), path.size() + 1);
  unlink(path.c_str());
  int made = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (made >= 0 && (bind(made, reinterpret_cast<struct sockaddr *>(&name), sizeof name) || listen(made, 16))) {
    close(made);
    return -1;
  }
  own.pid = getpid();
  std::memcpy(own.path, path.c_str(), path.size() + 1);
  static const int registered = std::atexit(remove_own);
  (void)registered;
  return made;
}

}  // namespace

std::mutex &listen_mutex() {
  static auto *mutex = new std::mutex;
  return *mutex;
}

void stop_listening_in_child() {
  if (!listener) return;
  for (int each : {listener->watch, listener->socket})
    if (each >= 0) close(each);
  for (auto &[client, heard] : listener->clients) close(client);
  listener = nullptr;
}

void listen_for_commands() {
  world();  // registers what a fork needs, before the mutex is held
  std::lock_guard lock(listen_mutex());
  const char *folder = std::getenv("FAKE_NVML_CONTROL");
  if (listener || !folder || !*folder) return;
  auto *made = new Listener;  // lives as long as the process
  made->path = std::string(folder) + "/commands";
  close(open(made->path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
  made->watch = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
  if (made->watch >= 0 && inotify_add_watch(made->watch, folder, IN_MODIFY | IN_CREATE | IN_MOVED_TO) < 0) {
    close(made->watch);
    made->watch = -1;
  }
  made->follow(true);
  made->socket = listening(std::string(folder) + "/" + std::to_string(getpid()) + ".sock");
  listener = made;
  std::thread([made] { made->run(); }).detach();
}

}  // namespace sim
