/*!
 * \file kernels/team.h
 * \brief OpenMP's team of threads, and a guard against its use after a fork.
 */
#ifndef KVCTL_KERNELS_TEAM_H_
#define KVCTL_KERNELS_TEAM_H_

namespace kvctl {

/*!
 * \brief Says whether a parallel region is to use several threads: call it in every `if` clause.
 *
 * A fork copies only the thread that forks. A child whose parent had used the team would wait
 * forever for threads that it does not have, so it is refused.
 *
 * \param wanted whether there is work enough for several threads.
 * \return wanted.
 * \throws kvctl::Error kRuntime in such a child, if wanted and OpenMP has more than one thread.
 */
bool UseTeam(bool wanted);

}  // namespace kvctl

#endif  // KVCTL_KERNELS_TEAM_H_
